"""Files of lines: which rows there are, what is no JSON, and that a row is read without its file."""

import gzip
import hashlib
import json
import os
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.data.examples import BrokenRow, Text
from modelwright.data.sources import kept, stored
from modelwright.data.sources.lines import index_lines, newlines_before
from modelwright.data.sources.stored import StoredBytes
from modelwright.errors import ConfigError, RequestError


def texts(source):
    return [source[row].content.text for row in range(len(source))]


def lines(source):
    return [source[row].place.line for row in range(len(source))]


def test_rows_are_found_by_number_in_any_order(folder):
    source = folder.rows([{"text": str(number)} for number in range(1000)])
    assert (source.format, len(source)) == ("text", 1000)
    assert [source[row].content for row in (999, 0, 517)] == [Text("999"), Text("0"), Text("517")]
    assert str(source[517].place) == f"{folder.path / 'rows.jsonl'}:518"
    for row in (-1, 1000):
        with pytest.raises(IndexError):
            source[row]


def test_a_mark_carriage_returns_blank_lines_and_a_missing_end_are_no_rows(folder):
    folder.write("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \t\n{"text": "b"}\r\n\n\n{"text": "c"}')
    source = folder.open("a.jsonl")
    assert texts(source) == ["a", "b", "c"]
    assert lines(source) == [1, 4, 7]


def test_plain_text_keeps_its_spaces_and_loses_its_carriage_return(folder):
    folder.write("a.txt", "  one \r\n\r\ntwo\u2028still two\n".encode())
    source = folder.open("a.txt")
    assert source.format == "text"
    assert texts(source) == ["  one ", "two\u2028still two"]


def test_a_whole_file_may_be_one_row(folder):
    folder.write("books/b.md", "# B\n\nwords\n")
    folder.write("books/a.txt", "\ufeffone\ntwo\n")
    folder.write("books/empty.txt", "")
    source = folder.open("books", format="document")
    assert texts(source) == ["one\ntwo\n", "# B\n\nwords\n"]


@given(
    st.lists(st.sampled_from([b"", b" ", b"\t\r", b"a", b" bc ", b"x" * 9]), max_size=12),
    st.integers(1, 7),
    st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_the_index_does_not_depend_on_where_chunks_end(parts, size, ends):
    content = b"\n".join(parts) + b"\n" * ends
    whole, stored.CHUNK = stored.CHUNK, size
    try:
        index = index_lines(StoredBytes(content))
        before = newlines_before(StoredBytes(content), index[0])
    finally:
        stored.CHUNK = whole
    expected = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    assert [(number, content[start:end]) for start, end, number in index.T] == expected
    assert list(before + 1) == list(index[2])


BROKEN = {
    b'{"text": "a"': "it is not JSON: Expecting ',' delimiter at character 13",
    b"{'text': 1}": "it is not JSON: Expecting property name enclosed in double quotes at character 2",
    b"not json": "it is not JSON: Expecting value at character 1",
    b'{"text": "a"} {"text": "b"}': "it is not JSON: Extra data at character 15",
    b'{"text": "a", "text": "b"}': "it holds an object with the name 'text' twice",
    b'{"text": "a", "more": {"x": [{"y": 1, "y": 1}]}}': "it holds an object with the name 'y' twice",
    b'{"text": "a", "score": NaN}': "it holds NaN, which JSON does not have",
    b'{"text": "a", "score": -Infinity}': "it holds -Infinity, which JSON does not have",
    b'{"text": "a", "score": 1e999}': "it holds 1e999, which is more than a float64 holds",
    b'{"text": "half \\ud83d"}': "it holds half of a surrogate pair (\\ud800 to \\udfff), which is no character",
    b'{"\\uDE00": 1}': "it holds half of a surrogate pair (\\ud800 to \\udfff), which is no character",
    b'{"text": "\xff"}': "it is not UTF-8: byte 11 is 0xff",
    b'{"text": "caf\xc3"}': "it is not UTF-8: byte 14 is 0xc3",
    b'["text"]': "a row must be a JSON object of names and values, not a list",
    b'"text"': "a row must be a JSON object of names and values, not a string",
    b"17": "a row must be a JSON object of names and values, not a number",
    b"null": "a row must be a JSON object of names and values, not a null",
    b"true": "a row must be a JSON object of names and values, not a truth value",
    b'{"text": 7}': "text must be a string, got 7",
    b'{"text": null}': "text must be a string, got None",
    b'{"text": ""}': "its text is empty",
    b'{"words": "a", "id": 3}': "it has no 'text': its names are words, id",
    b'{"a":' + b"[" * 100_000: "it is nested too deep",
}


@pytest.mark.parametrize(("line", "reason"), BROKEN.items(), ids=[reason[:40] for reason in BROKEN.values()])
def test_a_broken_row_names_its_line_and_leaves_the_others(folder, line, reason):
    folder.write("a.jsonl", b'{"text": "first"}\n' + line + b'\n{"text": "last"}\n')
    source = folder.open("a.jsonl")
    with pytest.raises(BrokenRow) as caught:
        source[1]
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{folder.path / 'a.jsonl'}:2: ")
    assert [source[row].content.text for row in (0, 2)] == ["first", "last"]


def test_a_number_of_thousands_of_digits_is_refused(folder):
    folder.write("a.jsonl", b'{"text": "a"}\n{"text": "b", "n": ' + b"9" * 5000 + b"}\n")
    with pytest.raises(BrokenRow, match="it holds a number of too many digits"):
        folder.open("a.jsonl")[1]


def test_whole_surrogate_pairs_and_escaped_backslashes_are_characters(folder):
    folder.write("a.jsonl", rb'{"text": "\ud83d\ude00 \\ud83d"}')
    assert texts(folder.open("a.jsonl")) == ["\U0001f600 \\ud83d"]


def test_a_row_of_ten_megabytes_is_read_and_a_longer_one_than_the_limit_is_not(folder, monkeypatch):
    folder.rows([{"text": "x" * 10_000_000}, {"text": "small"}])
    source = folder.open("rows.jsonl")
    assert len(source[0].content.text) == 10_000_000
    monkeypatch.setattr("modelwright.data.sources.lines.LONGEST_ROW", 1000)
    with pytest.raises(BrokenRow, match=r":1: it is 10000012 bytes long, and at most 1000 are read"):
        source[0]
    assert source[1].content == Text("small")


def test_the_format_is_found_by_the_first_row_that_can_be_read(folder):
    folder.write("a.jsonl", b'broken\n{"text": "a"}\n')
    assert folder.open("a.jsonl").format == "text"
    folder.write("b.jsonl", b"broken\nbroken too\n")
    with pytest.raises(
        RequestError, match=r"none of the first 2 rows of b\.jsonl can be read: .*b\.jsonl:1: it is not JSON"
    ):
        folder.open("b.jsonl")
    folder.write("c.jsonl", b'{"id": 1, "score": 2}\n')
    with pytest.raises(RequestError, match=r"c\.jsonl:1: no format has a row of id, score: name one of text, messages"):
        folder.open("c.jsonl")
    with pytest.raises(ConfigError, match=r"format of a\.jsonl must be one of auto, document, text, .* got 'txt'"):
        folder.open("a.jsonl", format="txt")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(folder, content):
    folder.write("a.jsonl", content)
    with pytest.raises(RequestError, match=r"a\.jsonl holds no rows"):
        folder.open("a.jsonl")


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-be"])
def test_utf_16_is_told_by_its_mark(folder, coding):
    folder.write("a.jsonl", ("\ufeff" if coding == "utf-16-be" else "").encode(coding) + '{"text": "a"}'.encode(coding))
    with pytest.raises(RequestError, match="is UTF-16, and only UTF-8 is read"):
        folder.open("a.jsonl")


@pytest.mark.parametrize("cached", [False, True])
def test_a_packed_file_is_unpacked_once(folder, cached, tmp_path):
    rows = b"".join(b'{"text": "%d"}\n' % number for number in range(500))
    path = folder.write("a.jsonl.gz", gzip.compress(rows))
    cache = tmp_path / "cache" if cached else None
    assert texts(folder.open("a.jsonl.gz", cache=cache)) == [str(number) for number in range(500)]
    if cached:
        [unpacked] = (cache / "files").glob("*-unpacked")
        assert unpacked.read_bytes() == rows
        unpacked.write_bytes(rows.replace(b'"7"', b'"X"'))  # so that it shows which one is read
        assert texts(folder.open("a.jsonl.gz", cache=cache))[7] == "X"
        path.write_bytes(gzip.compress(rows))  # changed: another time
        assert texts(folder.open("a.jsonl.gz", cache=cache))[7] == "7"


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    "harm", [lambda packed: packed[:-20], lambda packed: b"no gzip", lambda packed: packed[:40] + b"\0" * 40]
)
def test_a_damaged_packed_file_is_one_sentence_and_leaves_nothing(folder, harm, cached, tmp_path):
    folder.write("a.jsonl.gz", harm(gzip.compress(np.random.default_rng(0).bytes(5000))))
    cache = tmp_path / "cache" if cached else None
    with pytest.raises(RequestError, match=r"a\.jsonl\.gz is damaged or cut short"):
        folder.open("a.jsonl.gz", cache=cache)
    assert not cached or not any((cache / "files").iterdir())


def test_what_unpacks_to_more_than_memory_is_for_asks_for_a_folder(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "LARGEST_IN_MEMORY", 1000)
    folder.write("a.jsonl.gz", gzip.compress(b'{"text": "0123456789"}\n' * 100))
    with pytest.raises(RequestError, match=r"a\.jsonl\.gz unpacks to more than 0 MiB.*name a folder in data\.cache"):
        folder.open("a.jsonl.gz")
    assert len(folder.open("a.jsonl.gz", cache=tmp_path / "cache")) == 100


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python unpacks zstd itself")
def test_zstd_says_what_unpacks_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    folder.write("a.jsonl.zst", b"\x28\xb5\x2f\xfd")
    with pytest.raises(
        RequestError, match=r"which Python 3\.14 or the package zstandard unpacks.*pip install zstandard"
    ):
        folder.open("a.jsonl.zst")


def test_hashes_are_right_and_worked_out_once(folder, tmp_path):
    path = folder.write("a.jsonl", b'{"text": "a"}\n')
    digest = hashlib.sha256(b'{"text": "a"}\n').hexdigest()
    cache = tmp_path / "cache"
    expected = [{"file": str(path), "size": 14, "sha256": digest}]
    assert folder.open("a.jsonl").fingerprint() == expected
    assert folder.open("a.jsonl", cache=cache).fingerprint() == expected
    [entry] = (cache / "files").glob("*-sha256")
    entry.write_text("0" * 64)
    assert folder.open("a.jsonl", cache=cache).fingerprint()[0]["sha256"] == "0" * 64
    path.write_bytes(b'{"text": "b"}\n{"text": "c"}\n')
    changed = folder.open("a.jsonl", cache=cache).fingerprint()
    assert changed[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_index_is_kept_and_a_changed_file_has_another(folder, tmp_path):
    cache = tmp_path / "cache"
    folder.write("a.jsonl", b'{"text": "a"}\n{"text": "b"}\n')
    assert len(folder.open("a.jsonl", cache=cache)) == 2
    [entry] = (cache / "files").glob("*-lines.npy")
    np.save(entry, np.load(entry)[:, :1])
    assert len(folder.open("a.jsonl", cache=cache)) == 1
    folder.write("a.jsonl", b'{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
    assert len(folder.open("a.jsonl", cache=cache)) == 3


def test_a_source_crosses_to_another_process(folder):
    source = folder.rows([{"text": "a"}, {"text": "b"}])
    assert texts(source) == ["a", "b"]
    assert texts(pickle.loads(pickle.dumps(source))) == ["a", "b"]


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b'{"text": "a"}\n'), lambda path: path.unlink()])
def test_a_file_that_changes_while_it_is_read_ends_the_run(folder, change):
    """It is no broken row, which may be skipped: no row is where it was."""
    source = folder.rows([{"text": "a"}, {"text": "b"}])
    change(folder.path / "rows.jsonl")
    with pytest.raises(RequestError, match=r"rows\.jsonl (has changed|was removed) while its rows were read") as caught:
        source[0]
    assert not isinstance(caught.value, BrokenRow)


def test_a_source_of_many_files_holds_none_of_them_open(folder):
    for number in range(40):
        folder.write(f"set/{number}.jsonl", [{"text": "a"}])
    before = len(os.listdir("/proc/self/fd"))
    assert texts(folder.open("set")) == ["a"] * 40
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_large_file_is_not_held_in_memory(folder):
    """64 MiB of rows, of which the index and one chunk at a time are in memory."""
    assert len(folder.rows([{"text": "what reading needs is imported by now"}])) == 1
    row = json.dumps({"text": "x" * 65_500}).encode() + b"\n"
    path = folder.path / "large.jsonl"
    with path.open("wb") as file:
        for _ in range(1024):
            file.write(row)
    Path("/proc/self/clear_refs").write_text("5")  # the most memory that was resident counts from here
    before = most_resident()
    source = folder.open("large.jsonl")
    assert len(source[1023].content.text) == 65_500
    assert most_resident() - before < 48 * 1024


def most_resident() -> int:
    """KiB."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def test_files_are_read_in_the_order_of_their_names(folder, monkeypatch):
    for name in ("b", "a", "c/d"):
        folder.write(f"set/{name}.jsonl", [{"text": name}])
    folder.write("set/.hidden.jsonl", [{"text": "hidden"}])
    assert texts(folder.open("set")) == ["a", "b", "c/d"]
    assert texts(folder.open("set/*.jsonl")) == ["a", "b"]
    assert texts(folder.open("set/**/*.jsonl")) == ["a", "b", "c/d"]
    monkeypatch.chdir(folder.path)
    assert str(folder.open("set")[0].place) == "set/a.jsonl:1"


def test_a_root_is_looked_in_first(folder):
    folder.write("here.jsonl", [{"text": "beside the run file"}])
    folder.write("there/only.jsonl", [{"text": "in root"}])
    folder.write("there/here.jsonl", [{"text": "in root too"}])
    assert texts(folder.open("here.jsonl", root="there")) == ["in root too"]
    assert texts(folder.open("only.jsonl", root="there")) == ["in root"]
    assert texts(folder.open("here.jsonl")) == ["beside the run file"]


NO_FILES = {
    "absent.jsonl": "there is no file or folder {folder}/absent.jsonl",
    "*.jsonl": "no file matches {folder}/*.jsonl",
    "-": "standard input has no rows that can be found again by their numbers",
    "s3://bucket/rows.jsonl": "s3://bucket/rows.jsonl is no file of this machine",
    "https://example.com/rows.jsonl": "https://example.com/rows.jsonl is no file of this machine",
    "rows.docx": "rows.docx: files of rows end in .jsonl, .ndjson, .json, .parquet, .csv, .tsv, .tar, .idx, .txt, or",
    "empty": "holds no file of rows (.jsonl, .ndjson, .json, .parquet, .csv, .tsv, .tar, .idx, .txt) and no picture",
    "mixed": "holds files that end in .csv, .jsonl: name those meant by a glob",
}


@pytest.mark.parametrize(("path", "reason"), NO_FILES.items(), ids=NO_FILES)
def test_what_is_no_file_of_rows_is_one_sentence(folder, path, reason):
    folder.write("rows.docx", b"PK")
    (folder.path / "empty").mkdir()
    folder.write("mixed/a.jsonl", [{"text": "a"}])
    folder.write("mixed/a.csv", "text\na\n")
    with pytest.raises(RequestError) as caught:
        folder.open(path)
    assert reason.format(folder=folder.path) in str(caught.value)


def test_many_files_are_one_entry_of_a_fingerprint(folder):
    for number in range(70):
        folder.write(f"set/{number:02}.jsonl", [{"text": "a"}])
    [entry] = folder.open("set").fingerprint()
    assert (entry["file"], entry["size"]) == ("70 files of set", 70 * 14)
    folder.write("set/03.jsonl", [{"text": "b"}])
    assert folder.open("set").fingerprint()[0]["sha256"] != entry["sha256"]
