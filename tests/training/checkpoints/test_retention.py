"""Which checkpoints stay: the last, those for ever, those that are read, and all that is not a run's own."""

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.errors import CheckpointError
from modelwright.training.checkpoints import Saved
from modelwright.training.checkpoints.locks import reading
from modelwright.training.checkpoints.manifest import Manifest
from modelwright.training.checkpoints.retention import surplus
from tests.training.checkpoints.states import FILES, Folder, Part, empty, save


def test_the_last_and_those_for_ever_stay(tmp_path):
    folder = Folder(tmp_path, Part(keep=2, keep_every=300))
    folder.write(*range(100, 1000, 100))
    assert folder.steps == [300, 600, 800, 900]


@settings(max_examples=50)
@given(st.lists(st.integers(0, 30), unique=True), st.integers(1, 5), st.none() | st.integers(1, 6))
def test_surplus_by_its_definition(steps, keep, keep_every):
    saved = [Saved(Path(f"step-{step:06d}"), Manifest(step, place, {})) for place, step in enumerate(steps)]
    gone = {entry.step for entry in surplus(saved, keep, keep_every)}
    for place, step in enumerate(steps):
        stays = place >= len(steps) - keep or (keep_every is not None and step % keep_every == 0)
        assert (step in gone) == (not stays)


def test_the_new_one_is_complete_before_any_goes(tmp_path, monkeypatch):
    folder = Folder(tmp_path, Part(keep=1))
    folder.write(1)

    def look(saved):
        Saved.at(tmp_path / "step-000002").verify()
        assert saved.step == 1
        looked.append(saved)

    looked = []
    monkeypatch.setattr("modelwright.training.checkpoints.checkpoints.remove", look)
    folder.write(2)
    assert looked


def test_one_that_is_read_stays_until_it_has_been(tmp_path):
    folder = Folder(tmp_path, Part(keep=1))
    folder.write(1)
    with reading(tmp_path / "step-000001"):
        folder.write(2)
        assert folder.steps == [1, 2]
    folder.write(3)
    assert folder.steps == [3]
    with pytest.raises(CheckpointError, match="cannot be read"), reading(tmp_path / "step-000001"):
        pass


def test_loading_while_others_are_written(tmp_path, monkeypatch):
    """A slow reader of the only old checkpoint, and a run that keeps one and writes two meanwhile."""
    folder = Folder(tmp_path, Part(keep=1))
    folder.write(1)
    begun, go_on, steps = threading.Event(), threading.Event(), []
    facts = Saved.facts

    def slow(self):
        begun.set()
        go_on.wait(10)
        return facts(self)

    monkeypatch.setattr(Saved, "facts", slow)

    def read():
        with Folder(tmp_path).open() as checkpoints:
            steps.append(checkpoints.load(Saved.at(tmp_path / "step-000001"), empty())["step"])

    reader = threading.Thread(target=read)
    reader.start()
    begun.wait(10)
    folder.write(2, 3)
    assert folder.steps == [1, 3]
    go_on.set()
    reader.join()
    assert steps == [1]


def test_what_is_no_checkpoint_of_ours_stays(tmp_path):
    folder = Folder(tmp_path, Part(keep=1))
    folder.write(1)
    strangers = [tmp_path / "notes.txt", tmp_path / "step-final" / "x", tmp_path / ".step-000001.old" / "x"]
    strangers += [tmp_path / "step-000001" / "why_this_one.txt", tmp_path / "step-000007" / "mine"]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    folder.write(2, 3)
    assert all(path.read_text() == "mine" for path in strangers)
    assert (tmp_path / "step-000001" / FILES[0]).is_file()  # it is not emptied around the file
    assert not (tmp_path / "step-000002").exists()


def test_what_the_dead_left_goes_when_a_good_one_exists(tmp_path):
    folder = Folder(tmp_path)
    left = [tmp_path / f".step-000001.{what}-0123abcd" for what in ("writing", "replaced", "removing")]
    for path in left:
        path.mkdir()
        (path / "state").write_text("half")
    with folder.open() as checkpoints:
        assert checkpoints.newest() is None
        assert all(path.exists() for path in left)
        save(checkpoints, 1)
    assert not any(path.exists() for path in left)


def test_broken_ones_do_not_count(tmp_path):
    """Two of which one is cut short: neither goes for a third, since only one of them could be gone on from."""
    folder = Folder(tmp_path, Part(keep=2))
    folder.write(1, 2)
    path = tmp_path / "step-000002" / FILES[0]
    path.write_bytes(path.read_bytes()[:-1])
    folder.write(3)
    assert folder.steps == [1, 2, 3]
