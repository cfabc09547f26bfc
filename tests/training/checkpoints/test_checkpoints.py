"""Checkpoints of plain tensors: written, found, loaded; several in a row, and those that do not fit."""

import json

import pytest
import torch

from modelwright.errors import CheckpointError
from modelwright.training.checkpoints import Checkpoints, Saved
from tests.training.checkpoints.states import FILES, Folder, Part, empty, facts, save, state


@pytest.mark.parametrize("async_", [True, False])
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path, async_):
    folder = Folder(tmp_path / "checkpoints", Part(async_=async_))
    with folder.open() as checkpoints:
        assert checkpoints.newest() is None
        tensors = state(200)
        checkpoints.save(200, tensors, facts(200), {"steps": 300})
        tensors["model.weight"].zero_()  # the run goes on while a thread writes
        checkpoints.wait()
        saved = checkpoints.newest()
        assert saved is not None and saved.step == 200
        into = empty()
        found = checkpoints.load(saved, into)
    assert found["step"] == 200 and found["versions"]["torch"] == torch.__version__
    assert facts(200).items() <= found.items()
    assert saved.run() == {"steps": 300}
    assert all(torch.equal(into[name], tensor) for name, tensor in state(200).items())
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "latest", "step-000200"]
    assert (folder.path / "latest").read_text() == "step-000200\n"
    names = {path.relative_to(saved.folder).as_posix() for path in saved.folder.rglob("*") if path.is_file()}
    assert names == set(FILES)
    assert not folder.notes


def test_a_thread_writes_what_was_there_when_it_was_asked(tmp_path):
    """The second checkpoint waits for the first, whose copies it uses again."""
    folder = Folder(tmp_path, Part(async_=True))
    tensors = state(1)
    with folder.open() as checkpoints:
        for step in (1, 2, 3):
            for name, tensor in state(step).items():
                tensors[name].copy_(tensor)
            checkpoints.save(step, tensors, facts(step), {})
        checkpoints.wait()
        for step in (1, 2, 3):
            into = empty()
            checkpoints.load(Saved.at(tmp_path / f"step-{step:06d}"), into)
            assert all(torch.equal(into[name], tensor) for name, tensor in state(step).items())


def test_the_newest_step_is_not_written_twice(tmp_path):
    folder = Folder(tmp_path)
    folder.write(1, 2)
    inode = (tmp_path / "step-000002").stat().st_ino
    with folder.open() as checkpoints:
        saved = checkpoints.newest()
        assert saved is not None
        checkpoints.load(saved, empty())
        save(checkpoints, 2)
        save(checkpoints, 3)
        save(checkpoints, 3)
    assert (tmp_path / "step-000002").stat().st_ino == inode
    assert folder.steps == [1, 2, 3]


def test_the_newest_is_the_last_that_was_written(tmp_path):
    """A run that goes on from an earlier step writes lower ones after higher ones, and then writes those again."""
    folder = Folder(tmp_path, Part(keep=5))
    folder.write(100, 200, 300)
    with folder.open() as checkpoints:
        checkpoints.load(Saved.at(tmp_path / "step-000100"), empty())
        save(checkpoints, 150)
        newest = checkpoints.newest()
        assert newest is not None and newest.step == 150
        save(checkpoints, 200)
        newest = checkpoints.newest()
        assert newest is not None and newest.step == 200
    assert folder.steps == [100, 150, 200, 300] and not list(tmp_path.glob(".step*"))


def _other_shape(into):
    into["model.weight"] = torch.zeros(4, 3)


def _other_type(into):
    into["model.bias"] = torch.zeros(3)


def _one_more(into):
    into["model.extra"] = torch.zeros(1)


def _one_less(into):
    del into["none"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_shape, r"model.weight must be of shape \[4, 3\] for this run, and .* has \[3, 4\]"),
        (_other_type, "model.bias must be torch.float32 for this run, and in .* it is torch.bfloat16"),
        (_one_more, "lacks 1 tensors of this run, among them model.extra"),
        (_one_less, "holds 1 tensors that this run has not, among them none"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_before_anything_is_read(tmp_path, change, said):
    Folder(tmp_path).write(1)
    into = empty()
    change(into)
    with Folder(tmp_path).open() as checkpoints, pytest.raises(CheckpointError, match=said):
        checkpoints.load(Saved.at(tmp_path / "step-000001"), into)
    assert not any(tensor.any() for tensor in into.values())


def test_only_tensors_become_tensors_and_only_json_becomes_facts(tmp_path):
    with Checkpoints(tmp_path, Part()) as checkpoints:
        with pytest.raises(TypeError):
            checkpoints.save(1, {"model.weight": [1.0]}, {}, {})  # type: ignore[dict-item]
        with pytest.raises(TypeError):
            checkpoints.save(1, state(1), {"rng": object()}, {})
    assert not list(tmp_path.glob("*step*"))


def test_reading_runs_nothing_that_a_file_asks_for(tmp_path):
    """torch's metadata is a pickle, and a pickle may name any function."""
    Folder(tmp_path).write(1)
    saved = Saved.at(tmp_path / "step-000001")
    (saved.state / ".metadata").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "canary").encode() + b"'\ntR.")
    with Folder(tmp_path).open() as checkpoints, pytest.raises(CheckpointError, match=r"os\.system has no place in it"):
        checkpoints.load(saved, empty())
    assert not (tmp_path / "canary").exists()


def test_facts_are_json_that_others_read(tmp_path):
    Folder(tmp_path).write(1)
    values = json.loads((tmp_path / "step-000001" / "train.json").read_text())
    assert values["step"] == 1 and values["tokens"] == 7


def test_a_run_goes_on_from_what_is_named(tmp_path):
    folder = Folder(tmp_path / "run" / "checkpoints")
    folder.write(1, 2)
    with Folder(tmp_path / "other").open() as checkpoints:
        assert checkpoints.chosen() is None and checkpoints.chosen("none") is None
        for place in (tmp_path / "run", folder.path, folder.path / "step-000002"):
            saved = checkpoints.chosen(str(place))
            assert saved is not None and saved.step == 2
        first = checkpoints.chosen(folder.path / "step-000001")
        assert first is not None and first.step == 1
        checkpoints.load(first, empty())
        save(checkpoints, 1)  # into its own folder
        assert (tmp_path / "other" / "step-000001").is_dir()
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            checkpoints.chosen(tmp_path)
        (folder.path / "step-000002" / "train.json").unlink()
        with pytest.raises(CheckpointError, match=r"lacks its file train\.json"):
            checkpoints.chosen(tmp_path / "run")


def test_a_run_from_the_beginning_does_not_mix_with_another(tmp_path):
    folder = Folder(tmp_path)
    folder.write(1, 2)
    with folder.open() as checkpoints, pytest.raises(CheckpointError, match="holds 2 checkpoints, up to step 2"):
        checkpoints.chosen("none")
