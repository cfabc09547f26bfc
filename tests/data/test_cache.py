"""Prepared documents: what is read back is what was made, of any kind, and a folder of a key is always whole."""

import os
import shutil
import signal
from concurrent.futures import Future

import numpy as np
import pytest

from modelwright.data import cache
from modelwright.data.cache import Prepared, find_prepared, key_of, prepare
from modelwright.data.documents import UNLEARNED, Document
from modelwright.data.encoding.learning import Unlearned
from modelwright.data.examples import BrokenRow, Example, Tokens
from modelwright.data.identity import identity_of
from modelwright.errors import RequestError


class Made:
    """Makes documents of tokens at once: token 13 breaks a row, 14 makes it teach nothing, 15 is a picture."""

    def __init__(self):
        self.asked = 0

    def submit(self, example: Example, outline: bool) -> "Future[Document]":
        self.asked += 1
        assert outline
        done: Future[Document] = Future()
        try:
            done.set_result(self.document(example))
        except BrokenRow as error:
            done.set_exception(error)
        return done

    def document(self, example: Example) -> Document:
        assert isinstance(example.content, Tokens)
        ids, labels = example.content.ids, example.content.labels
        if 13 in ids:
            raise BrokenRow(example.place, "it holds 13")
        if 14 in ids:
            raise Unlearned(example.place, "nothing is learned of it")
        labels = np.concatenate([[UNLEARNED], (ids if labels is None else labels)[1:]])
        pictures = int((ids == 15).sum())
        grids = tuple((number + 1, 2) for number in range(pictures))
        mask = ids == 15 if pictures else None
        return Document(ids, labels, example.place, None, grids, mask, reads_last=ids[-1] != 9)


ROWS = [
    {"input_ids": [1, 2, 3]},
    {"input_ids": [1, 13]},
    {"input_ids": [4, 5, 6, 70000], "labels": [-100, 5, -100, 8]},
    {"input_ids": [15, 15, 2], "labels": [-100, -100, 2]},
    {"input_ids": [14]},
    {"input_ids": [7, 8, 9]},
    {"input_ids": [1, 15, 9]},
]


def same(one: Document, other: Document) -> bool:
    arrays = all(
        (getattr(one, name) is None and getattr(other, name) is None)
        or (
            np.array_equal(getattr(one, name), getattr(other, name))
            and getattr(one, name).dtype == getattr(other, name).dtype
        )
        for name in ("ids", "labels", "picture_mask", "tiles")
    )
    return arrays and (one.place, one.grids, one.reads_last) == (other.place, other.grids, other.reads_last)


def test_what_is_read_back_is_what_was_made(folder, tmp_path):
    source, maker = folder.rows(ROWS), Made()
    told = []
    prepared = prepare(source, maker, tmp_path / "cache", "key", skips=True, progress=told.append)
    assert (len(prepared), told) == (7, [*range(7)])
    for row in (0, 2, 3, 5, 6):
        assert same(prepared.outline(row), maker.document(source[row])), row
    assert prepared.lengths.tolist() == [3, 0, 4, 3, 0, 2, 2]
    with pytest.raises(BrokenRow, match=r"rows\.jsonl:2: it holds 13") as caught:
        prepared.outline(1)
    assert not isinstance(caught.value, Unlearned)
    with pytest.raises(Unlearned, match=r"rows\.jsonl:5: nothing is learned of it"):
        prepared.outline(4)
    counts = {name: prepared.manifest[name] for name in ("rows", "tokens", "learned", "pictures", "key")}
    assert counts == {"rows": 7, "tokens": 16, "learned": 9, "pictures": 3, "key": "key"}
    files = prepared.manifest["files"]
    assert {path.name for path in prepared.folder.iterdir()} == {*files, "manifest.json"}


def test_it_is_used_in_place_and_made_once(folder, tmp_path):
    source, maker = folder.rows(ROWS[2:4]), Made()
    assert find_prepared(tmp_path / "cache", "key") is None
    first = prepare(source, maker, tmp_path / "cache", "key")
    again = prepare(source, maker, tmp_path / "cache", "key")
    found = find_prepared(tmp_path / "cache", "key")
    assert maker.asked == 2 and found is not None
    assert same(first.outline(0), again.outline(0)) and same(first.outline(1), found.outline(1))
    assert isinstance(found._tokens, np.memmap)


@pytest.mark.parametrize(("skips", "cuts", "stops"), [(False, False, 1), (True, False, None), (False, True, 1)])
def test_a_broken_row_stops_where_it_is_not_skipped_and_leaves_nothing(folder, tmp_path, skips, cuts, stops):
    source = folder.rows(ROWS)
    if stops is None:
        assert len(prepare(source, Made(), tmp_path / "cache", "key", skips=skips, cuts=cuts)) == 7
        return
    with pytest.raises(BrokenRow, match="it holds 13"):
        prepare(source, Made(), tmp_path / "cache", "key", skips=skips, cuts=cuts)
    assert [*(tmp_path / "cache" / "prepared").iterdir()] == []


def test_a_row_that_teaches_nothing_may_be_left_out_alone(folder, tmp_path):
    source = folder.rows([ROWS[0], ROWS[4]])
    with pytest.raises(Unlearned):
        prepare(source, Made(), tmp_path / "cache", "stop")
    assert prepare(source, Made(), tmp_path / "cache", "cut", cuts=True).lengths.tolist() == [3, 0]


def test_a_row_that_is_no_json_is_noted_too(folder, tmp_path):
    folder.write("a.jsonl", b'{"input_ids": [1, 2]}\nbroken\n')
    prepared = prepare(folder.open("a.jsonl"), Made(), tmp_path / "cache", "key", skips=True)
    with pytest.raises(BrokenRow, match=r"a\.jsonl:2: it is not JSON"):
        prepared.outline(1)


def test_many_rows_are_asked_for_ahead_and_keep_their_order(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_AHEAD", 3)
    source = folder.rows([{"input_ids": [1, number]} for number in range(20, 40)])
    prepared = prepare(source, Made(), tmp_path / "cache", "key")
    assert [int(prepared.outline(row).ids[1]) for row in range(20)] == [*range(20, 40)]


def test_a_key_is_of_the_files_and_of_what_makes_documents(folder):
    source = folder.rows(ROWS)
    key = key_of(source, "one")
    assert key == key_of(folder.open("rows.jsonl"), "one") and len(key) == 32
    assert key != key_of(source, "another")
    assert key != key_of(folder.rows(ROWS[1:]), "one")


def prepare_and_die(folder, step: int) -> int:
    """Prepare in a process of its own that is killed before its ``step``-th action; the signal, or 0 where it ended."""
    source, steps = folder.open("rows.jsonl"), iter(range(1, 1000))

    def die(*anything):
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    for owner, name in ((os, "fsync"), (os, "rename"), (cache, "sync_folder")):
        real = getattr(owner, name)
        setattr(owner, name, lambda *given, real=real: (die(), real(*given))[1])
    prepare(source, Made(), folder.path / "cache", "key", skips=True, progress=die)
    os._exit(0)


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_a_whole_folder_or_none(folder):
    """At every place in turn: while rows are made, while files are brought to the disk, before and after the rename."""
    folder.rows(ROWS)
    ended = []
    for step in range(1, 30, 2):
        shutil.rmtree(folder.path / "cache" / "prepared" / "key", ignore_errors=True)
        signalled = prepare_and_die(folder, step)
        found = find_prepared(folder.path / "cache", "key")
        ended.append((signalled, found is not None))
        assert found is None or found.lengths.tolist() == [3, 0, 4, 3, 0, 2, 2]
    assert {(9, False), (9, True), (0, True)} == {*ended}
    prepare(folder.open("rows.jsonl"), Made(), folder.path / "cache", "key", skips=True)
    assert [path.name for path in (folder.path / "cache" / "prepared").iterdir()] == ["key"]


def test_two_that_prepare_the_same_end_with_one_folder(folder, tmp_path, monkeypatch):
    """On two machines that share the cache, of which neither knows the other's processes."""
    source = folder.rows(ROWS[2:4])

    def another(row):
        if row == 1:
            prepare(source, Made(), tmp_path / "cache", "key")

    machines = iter("aabb")
    monkeypatch.setattr(cache, "gethostname", lambda: next(machines))
    prepared = prepare(source, Made(), tmp_path / "cache", "key", progress=another)
    assert same(prepared.outline(0), Made().document(source[0]))
    assert [path.name for path in (tmp_path / "cache" / "prepared").iterdir()] == ["key"]


def test_a_damaged_folder_is_told(folder, tmp_path):
    prepared = prepare(folder.rows(ROWS[:1]), Made(), tmp_path / "cache", "key")
    tokens = prepared.folder / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-1])
    with pytest.raises(RequestError, match=r"tokens\.bin has 11 bytes and its manifest says 12: remove"):
        Prepared(prepared.folder)
    (prepared.folder / "manifest.json").write_text("{")
    with pytest.raises(RequestError, match="is damaged: remove it and prepare the data again"):
        Prepared(prepared.folder)


def test_an_identity_is_of_what_an_encoder_was_made_of():
    class Encoder:
        def __init__(self, labels, palette, names):
            self.labels, self.palette, self.names = labels, np.array(palette), names
            self._made = object()

    one = identity_of(Encoder("last", [1, 2], {"b", "a"}))
    assert one == identity_of(Encoder("last", [1, 2], {"a", "b"})) and len(one) == 64
    others = [Encoder("all", [1, 2], {"a", "b"}), Encoder("last", [1, 3], {"a", "b"}), Encoder("last", [1, 2], {"a"})]
    assert len({one, *map(identity_of, others)}) == 4
    circle = Encoder("last", [1], {"a"})
    circle.itself = circle
    assert len(identity_of(circle)) == 64
