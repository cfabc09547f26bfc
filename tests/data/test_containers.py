"""Containers, on files that others wrote: json, csv, tarfile, pyarrow, zstandard, and Megatron's laid out by hand."""

import csv
import gzip
import io
import json
import pickle
import struct
import sys
import tarfile
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.data.examples import BrokenRow, Chat, Message, Picture, PictureRef, Place, Text
from modelwright.data.formats import find_format
from modelwright.data.sources.found import find_files
from modelwright.data.sources.json_file import index_json
from modelwright.data.sources.kept import Kept
from modelwright.data.sources.separated import Separated
from modelwright.data.sources.stored import StoredBytes
from modelwright.errors import RequestError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5), st.sampled_from([None, 1]), st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_list_of_json_is_cut_as_json_reads_it(rows, indent, ascii_only):
    content = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode()
    index = index_json(StoredBytes(content), "a.json")
    assert [json.loads(content[start:end]) for start, end, _ in index.T] == rows
    assert [line for *_, line in index.T] == [content[:start].count(b"\n") + 1 for start, *_ in index.T]


def test_a_json_file_is_a_list_or_lines(folder):
    folder.write("a.json", json.dumps([{"text": "a"}, {"text": "b"}], indent=2))
    source = folder.open("a.json")
    assert [source[row].content for row in (1, 0)] == [Text("b"), Text("a")]
    assert [source[row].place.line for row in (0, 1)] == [2, 5]
    folder.write("b.json", '{"text": "a"}\n{"text": "b"}\n')
    assert len(folder.open("b.json")) == 2
    folder.write("c.json", '[{"text": "a"}, {"text": "b", "text": "c"}]')
    with pytest.raises(BrokenRow, match=r"c\.json:1: it holds an object with the name 'text' twice"):
        folder.open("c.json")[1]


@given(
    st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5),
    st.dictionaries(st.text(), VALUES.filter(lambda value: not isinstance(value, list)), max_size=3),
    st.sampled_from([None, 1]),
)
@settings(deadline=None, max_examples=40)
def test_rows_within_an_object_are_those_of_its_list(rows, beside, indent):
    content = json.dumps({"a": 1} | beside | {"data": rows}, indent=indent).encode()
    if find_format(json.loads(content)) is None:
        index = index_json(StoredBytes(content), "a.json")
        assert [json.loads(content[start:end]) for start, end, _ in index.T] == rows


CHAT = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_file_may_be_one_row_or_an_object_around_a_list_of_rows(folder, indent):
    folder.write("one.json", json.dumps(CHAT, indent=indent))
    source = folder.open("one.json")
    assert (len(source), source.format, source[0].content.messages[1].words) == (1, "messages", "2")
    for name in ("data", "train", "instances", "rows"):
        # what datasets' load_dataset("json", field=name) reads
        folder.write("a.json", json.dumps({"version": "1[{", name: [CHAT, CHAT], "about": {"n": [2]}}, indent=indent))
        source = folder.open("a.json")
        assert (len(source), source[1].content) == (2, folder.open("one.json")[0].content)
        assert source[1].place.line == (1 if indent is None else 16)
    folder.write("b.json", '{"text": "broken\n{"text": "b"}\n')
    folder.open("b.json", format="text")  # lines, of which the first is broken


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        ({"train": [CHAT], "test": [CHAT]}, "train, test, which .* holds several lists of objects .train, test."),
        ({"data": {"train": [CHAT]}}, "data, which is no row of a known format and holds no list of objects"),
        ({"data": ["a", "b"]}, "data, which is no row of a known format and holds no list of objects"),
    ],
)
def test_an_object_that_may_mean_several_things_is_refused(folder, value, holds):
    folder.write("a.json", json.dumps(value, indent=1))
    with pytest.raises(RequestError, match=f"a.json is one object with the names {holds}.*: write the rows that are"):
        folder.open("a.json")


def test_what_stands_around_the_rows_of_an_object_is_json_too(folder):
    folder.write("a.json", '{"version": 1 "data": [{"text": "a"}]}')
    with pytest.raises(RequestError, match=r"a\.json: what stands around 'data' is not JSON: Expecting ',' delimiter"):
        folder.open("a.json")


NO_LISTS = {
    '[{"a": 1}': "1: the list is not closed",
    '[{"a": 1}\n, {"b": "c]}': "2: a string is not closed",
    '[{"a": 1} {"b": 2}]': "1: a comma must stand between two objects, and nothing else",
    '[{"a": 1}, 7, {"b": 2}]': "1: a comma must stand between two objects, and nothing else",
    '[{"a": 1},]': "1: something else than objects stands in it",
    "[null]": "1: something else than objects stands in it",
    '[{"a": 1}, ["b"]]': "1: a list stands where an object must",
    '[{"a": 1}, "b"]': "1: a string stands where an object must",
    '[{"a": 1}]\n{"b": 2}': "2: something follows the list",
    '[{"a": 1}] x': "1: something follows the list",
    '{\n"a": 1}\n{\n"b": 2}\n': "2: something follows an object of several lines",
    '[{"a": 1]]': "1: ] closes nothing",
}


@pytest.mark.parametrize(("content", "reason"), NO_LISTS.items(), ids=NO_LISTS)
def test_a_json_file_that_is_no_list_of_objects_is_refused(folder, content, reason):
    folder.write("a.json", content)
    line, _, why = reason.partition(": ")
    with pytest.raises(RequestError) as caught:
        folder.open("a.json")
    assert str(caught.value).endswith(
        f"a.json:{line}: a JSON file must be a list of objects, or an object a line: {why}"
    )


CELLS = st.text(alphabet='ab,"\n\r\t é', max_size=6)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), st.sampled_from(",\t"), st.booleans())
@settings(deadline=None, max_examples=50)
def test_csv_is_read_as_pythons_csv_reads_it(tmp_path_factory, rows, separator, all_quoted):
    path = tmp_path_factory.getbasetemp() / "drawn.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        how = {"quoting": csv.QUOTE_ALL, "lineterminator": "\n"} if all_quoted else {"lineterminator": "\r\n"}
        csv.writer(file, delimiter=separator, **how).writerows([("text", "other"), *rows])
    read = Separated(path, "drawn.csv", Kept(), separator)
    with path.open(newline="", encoding="utf-8-sig") as file:
        expected = [*csv.DictReader(file, delimiter=separator)]
    assert [read[row].value for row in range(len(read))] == expected
    assert [tuple(row.values()) for row in expected] == rows


def test_cells_hold_lines_large_texts_and_json(folder):
    large = "x" * 300_000  # Python's csv stops at 131072
    rows = [("a\nb", ""), (large, ""), ("", json.dumps([{"role": "user", "content": "1+1?"}]))]
    file = io.StringIO()
    csv.writer(file).writerows([("text", "messages"), *rows])
    folder.write("a.csv", file.getvalue())
    source = folder.open("a.csv", format="text")
    assert [source[row].content for row in (0, 1)] == [Text("a\nb"), Text(large)]
    assert [source._row(row).place.line for row in range(3)] == [2, 4, 5]
    assert folder.open("a.csv", format="messages")[2].content == Chat((Message("user", ("1+1?",)),))


BROKEN_RECORDS = {
    "text,id\na\n": "2: it has 1 cells, and the first record names 2",
    "text,id\na,1,2\n": "2: it has 3 cells, and the first record names 2",
    'text,id\n"a,1\n': "2: a quote is not closed",
}


@pytest.mark.parametrize(("content", "reason"), BROKEN_RECORDS.items(), ids=BROKEN_RECORDS)
def test_a_broken_record_names_its_line(folder, content, reason):
    folder.write("a.csv", content + "last,[]\n")
    source = folder.open("a.csv", format="text")
    with pytest.raises(BrokenRow) as caught:
        source[0]
    assert str(caught.value) == f"{folder.path / 'a.csv'}:{reason}"
    assert source[len(source) - 1].content == Text("last")


NESTED = {
    "messages": [{"role": "user", "content": "<image>1+1?"}, {"role": "assistant", "content": "2"}],
    "images": ["a.png"],
    "tools": [],
}


def written(folder, end, row):
    """A file of one row, in one of the ways that rows are stored."""
    if end == "parquet":
        arrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
        parquet.write_table(arrow.Table.from_pylist([row]), folder.path / f"a.{end}")
        return
    file = io.StringIO()
    csv.writer(file).writerows([row, row.values()])
    tar = packed({"1.json": json.dumps(row).encode()})
    content = {"csv": file.getvalue(), "jsonl": json.dumps(row), "json": json.dumps(row, indent=1), "tar": tar}
    folder.write(f"a.{end}", content[end])


@pytest.mark.parametrize("end", ["parquet", "csv", "jsonl", "json", "tar"])
def test_lists_may_stand_as_strings_of_json_in_files_of_each_kind(folder, end):
    picture = folder.write("a.png", b"p")
    folder.write("plain.jsonl", [NESTED])
    plain = folder.open("plain.jsonl")[0].content
    assert plain.messages[0].parts == (PictureRef(str(picture)), "1+1?")
    chat = {name: json.dumps(value) for name, value in NESTED.items()}
    written(folder, end, chat)
    source = folder.open(f"a.{end}", root=str(folder.path))
    assert (source.format, source[0].content, source.unread()) == ("ms-swift", plain, [])
    written(folder, end, chat | {"images": "a.png", "id": "7"})
    source = folder.open(f"a.{end}", root=str(folder.path))
    assert (source[0].content, source.unread()) == (plain, ["id"])
    written(folder, end, {"input_ids": "[3, 4]", "labels": "[-100, 4]", "attention_mask": "[1, 1]", "position_ids": ""})
    tokens = folder.open(f"a.{end}", root=str(folder.path))[0].content
    assert (tokens.ids.tolist(), tokens.labels.tolist()) == ([3, 4], [-100, 4])
    written(folder, end, {"text": "words", "labels": "positive", "history": ""})
    source = folder.open(f"a.{end}", root=str(folder.path))
    assert (source[0].content, source.unread()) == (Text("words"), ["labels"])
    written(folder, end, {"messages": "[{'role': 'user'}]"})
    with pytest.raises(
        BrokenRow, match=": messages begins as a list or an object of JSON does: it is not JSON: Expecting p"
    ):
        folder.open(f"a.{end}", root=str(folder.path))[0]


def test_a_table_needs_names(folder):
    folder.write("a.csv", "text,text\na,b\n")
    with pytest.raises(RequestError, match=r"a\.csv:1: the first record must be the names of the columns: it has"):
        folder.open("a.csv")
    folder.write("b.csv", "\n")
    with pytest.raises(RequestError, match="it is empty"):
        folder.open("b.csv")
    folder.write("c.tsv", "text\tid\na, b\t1\n")
    assert folder.open("c.tsv")[0].content == Text("a, b")


def packed(files: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")])
def test_samples_of_a_webdataset_are_runs_of_one_name(folder, name, mode):
    chat = {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A dog."}]}
    files = {
        "set/0001.jpg": b"first",
        "set/0001.json": json.dumps(chat).encode(),
        "set/.hidden": b"",
        "set/0002.json": json.dumps(chat | {"images": ["0002.left.png"]}).encode(),
        "set/0002.left.png": b"left",
        "set/0002.cls": b"7",
        "x" * 120 + ".json": b"{broken",
    }
    folder.write(name, packed(files, mode))
    source = folder.open(name)
    assert (len(source), source.format) == (3, "ms-swift")
    assert source[0].content.pictures == (PictureRef(b"first"),)
    assert source[1].content.messages[0].parts == (PictureRef(b"left"), "What?")
    assert str(source[1].place) == f"{folder.path / name}:2"
    with pytest.raises(BrokenRow, match=r":3: it is not JSON"):
        source[2]
    assert pickle.loads(pickle.dumps(source))[1].content == source[1].content


def test_words_beside_a_picture_are_its_caption_and_a_picture_alone_is_pixels(folder):
    folder.write("a.tar", packed({"1.jpg": b"p", "1.txt": "a d\u00f6g".encode(), "2.jpg": b"q", "2.txt": b"\xff"}))
    source = folder.open("a.tar")
    assert source.format == "caption"
    assert source[0].content == Chat((Message("user", (PictureRef(b"p"),)), Message("assistant", ("a d\u00f6g",))))
    with pytest.raises(BrokenRow, match=":2: it is not UTF-8"):
        source[1]
    folder.write("b.tar", packed({"1.png": b"p", "2.png": b"q"}))
    source = folder.open("b.tar")
    assert (source.format, source[1].content) == ("picture", Picture(PictureRef(b"q")))
    folder.write("c.tar", packed({"1.txt": b"alone"}))
    assert folder.open("c.tar")[0].content == Text("alone")


def test_an_archive_that_is_none_or_is_cut_short(folder):
    folder.write("a.tar", b"no archive" * 100)
    with pytest.raises(RequestError, match=r"a\.tar is no tar file that can be read"):
        folder.open("a.tar")
    folder.write("b.tar", packed({"1.txt": b"a", "1.TXT": b"b"}))
    with pytest.raises(RequestError, match=r"b\.tar:1: the sample 1 has two files named \.txt"):
        folder.open("b.tar")
    folder.write("c.tar", packed({"1.txt": b"a", "2.bin": b"b"}))
    with pytest.raises(BrokenRow, match=r"c\.tar:2: the sample 2 has no \.json, no words and no picture"):
        folder.open("c.tar")[1]


def megatron(sequences, documents, code=4, kind="<i4", version=1):
    """A pair of files as Megatron-LM's IndexedDatasetBuilder lays them out."""
    arrays = [np.array(sequence, kind) for sequence in sequences]
    starts = np.cumsum([0, *(array.nbytes for array in arrays)])[:-1]
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", version, code, len(arrays), len(documents))
    index += np.array([len(array) for array in arrays], "<i4").tobytes() + starts.astype("<i8").tobytes()
    return index + np.array(documents, "<i8").tobytes(), b"".join(array.tobytes() for array in arrays)


@pytest.mark.parametrize(("code", "kind"), [(8, "<u2"), (4, "<i4"), (5, "<i8"), (1, "u1")])
def test_megatrons_documents_are_all_their_sequences(folder, code, kind):
    index, tokens = megatron([[5, 6, 7], [250], [9, 10]], [0, 2, 3], code, kind)
    folder.write("corpus.idx", index)
    folder.write("corpus.bin", tokens)
    for name in ("corpus", "corpus.idx", "corpus.bin", "*.bin", "corpus.*"):
        source = folder.open(name)
        assert (source.format, len(source)) == ("megatron", 2)
        assert source[0].content.ids.tolist() == [5, 6, 7, 250]
        assert source[1].content.ids.dtype == np.int64
        assert source[1].place == Place(str(folder.path / "corpus.idx"), 2)
    assert [entry["size"] for entry in source.fingerprint()] == [len(index), len(tokens)]


MEGATRON = {
    "does not begin as an index of Megatron does": lambda index, tokens: (b"x" + index, tokens),
    "is of version 2 with tokens of code 4": lambda index, tokens: (megatron([[1]], [0, 1], version=2)[0], tokens),
    "is of version 1 with tokens of code 7": lambda index, tokens: (megatron([[1]], [0, 1], code=7)[0], tokens),
    "is cut short: it names 2 sequences": lambda index, tokens: (index[:-1], tokens),
    "names tokens up to byte 12, and a.bin has 11": lambda index, tokens: (index, tokens[:-1]),
    "its documents must begin at sequence 0, ascend, and end at 2, the number of its sequences, got [0 1]": (
        lambda index, tokens: (megatron([[1, 2], [3]], [0, 1])[0], tokens)
    ),
    "needs its tokens beside it, and there is no a.bin": lambda index, tokens: (index, None),
}


@pytest.mark.parametrize(("reason", "harm"), MEGATRON.items(), ids=MEGATRON)
def test_a_damaged_pair_is_told(folder, reason, harm):
    index, tokens = harm(*megatron([[1, 2], [3]], [0, 1, 2]))
    folder.write("a.idx", index)
    if tokens is not None:
        folder.write("a.bin", tokens)
    with pytest.raises(RequestError) as caught:
        folder.open("a.idx")
    assert reason in str(caught.value)


def test_an_empty_document_of_megatrons_is_a_broken_row(folder):
    index, tokens = megatron([[1, 2]], [0, 0, 1])
    folder.write("a.idx", index)
    folder.write("a.bin", tokens)
    with pytest.raises(BrokenRow, match=r"a\.idx:1: its input_ids are empty"):
        folder.open("a.idx")[0]


@pytest.mark.parametrize("cached", [False, True])
def test_parquet_is_read_in_any_order(folder, cached, tmp_path):
    arrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    chats = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": str(n)}] for n in range(1000)]
    pictures = [[{"bytes": b"%d" % n, "path": None}] for n in range(1000)]
    parquet.write_table(
        arrow.table({"messages": chats, "images": pictures}), folder.path / "a.parquet", row_group_size=300
    )
    source = folder.open("a.parquet", cache=tmp_path / "cache" if cached else None)
    assert (source.format, len(source)) == ("ms-swift", 1000)
    for row in (999, 0, 300, 299, 613):
        assert source[row].content.messages[1].words == str(row)
        assert source[row].content.pictures == (PictureRef(b"%d" % row),)
        assert source[row].place.line == row + 1
    assert pickle.loads(pickle.dumps(source))[5].content == source[5].content
    parquet.write_table(arrow.table({"input_ids": [[1, 2], [3]]}), folder.path / "b.parquet")
    assert folder.open("b.parquet")[1].content.ids.tolist() == [3]
    folder.write("c.parquet", b"no parquet")
    with pytest.raises(RequestError, match=r"c\.parquet is no parquet file that can be read"):
        folder.open("c.parquet", cache=tmp_path / "cache" if cached else None)


def test_parquet_says_what_reads_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    folder.write("a.parquet", b"PAR1")
    with pytest.raises(RequestError, match=r"pyarrow, which is not installed: pip install 'modelwright\[parquet\]'"):
        folder.open("a.parquet")


def test_zstd_is_unpacked(folder):
    name = "compression.zstd" if sys.version_info >= (3, 14) else "zstandard"
    packer = pytest.importorskip(name)
    compress = packer.compress if hasattr(packer, "compress") else packer.ZstdCompressor().compress
    folder.write("a.jsonl.zst", compress(b'{"text": "a"}\n{"text": "b"}\n'))
    assert [folder.open("a.jsonl.zst")[row].content for row in (0, 1)] == [Text("a"), Text("b")]


class HubSet(list):
    """What ``datasets.load_dataset`` gives, as far as it is asked."""

    cache_files = ()
    features = {"image": SimpleNamespace(), "text": SimpleNamespace()}

    def cast_column(self, name, feature):
        return self


def test_a_name_of_the_hub_goes_through_datasets(folder, monkeypatch):
    asked = []
    datasets = ModuleType("datasets")
    datasets.Image = type("Image", (), {})
    datasets.load_dataset = lambda name, config, split: asked.append((name, config, split)) or HubSet([{"text": "a"}])
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    source = folder.open("hf://owner/name")
    assert (source[0].content, str(source[0].place)) == (Text("a"), "hf://owner/name:1")
    folder.open("hf://owner/name:config@train[:10%]")
    assert asked == [("owner/name", None, "train"), ("owner/name", "config", "train[:10%]")]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match="hf://owner/name is read by the package datasets, which is not installed"):
        folder.open("hf://owner/name")
    with pytest.raises(RequestError, match="must be hf://owner/name"):
        folder.open("hf://owner/name/more")


def test_a_packed_list_and_table_are_read_too(folder):
    folder.write("a.json.gz", gzip.compress(b'[{"text": "a"}]'))
    folder.write("b.csv.gz", gzip.compress(b"text\nb\n"))
    assert [folder.open(name)[0].content for name in ("a.json.gz", "b.csv.gz")] == [Text("a"), Text("b")]


def test_a_folder_with_brackets_holds_files_that_a_glob_finds(tmp_path):
    """The folder that a path is relative to is no pattern, and an end in capitals is that end."""
    place = tmp_path / "[proj] x"
    (place / "rows").mkdir(parents=True)
    for name in ("a.jsonl.GZ", "b.jsonl.gz"):
        (place / "rows" / name).write_bytes(gzip.compress(b'{"text": "a"}\n'))
    found = find_files("rows/*.jsonl.*", [place], "auto")
    assert [each.name for each in found] == ["a.jsonl.GZ", "b.jsonl.gz"]
    assert [Kept(None).opened(each).view() for each in found] == [b'{"text": "a"}\n'] * 2
