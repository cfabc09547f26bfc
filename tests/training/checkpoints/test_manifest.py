"""Damage to any file of a checkpoint is noticed, named, and answered with the checkpoint before."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.errors import CheckpointError
from modelwright.training.checkpoints import CheckpointsFailed, Saved
from modelwright.training.checkpoints.manifest import FileRecord, Manifest
from tests.training.checkpoints.states import FILES, Folder, Part, empty


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("two")
    Folder(path).write(1, 2)
    return path


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _delete(path: Path) -> None:
    path.unlink()


DAMAGES = (_flip, _truncate, _lengthen, _empty, _delete)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_leads_to_the_checkpoint_before(two, tmp_path, name, damage):
    folder = Folder(shutil.copytree(two, tmp_path / "copy"))
    damage(folder.path / "step-000002" / name)
    with folder.open() as checkpoints:
        newest = checkpoints.newest()
        assert newest is not None and newest.step == 1
        assert checkpoints.load(newest, empty())["step"] == 1
    assert len(folder.notes) == 1 and Path(name).name in folder.notes[0] and "step-000001" in folder.notes[0]
    assert folder.steps == [1, 2]


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_hashes_all_but_a_changed_byte_is_noticed(two, tmp_path, damage):
    folder = Folder(shutil.copytree(two, tmp_path / "copy"), Part(verify=False))
    damage(folder.path / "step-000002" / FILES[0])
    with folder.open() as checkpoints:
        newest = checkpoints.newest()
    assert newest is not None and newest.step == (2 if damage is _flip else 1)


def test_where_none_is_whole_the_run_ends_and_nothing_is_removed(two, tmp_path):
    folder = Folder(shutil.copytree(two, tmp_path / "copy"))
    _flip(folder.path / "step-000001" / FILES[0])
    _truncate(folder.path / "step-000002" / FILES[1])
    before = sorted(folder.path.rglob("*"))
    with folder.open() as checkpoints, pytest.raises(CheckpointsFailed, match=r"step-000002.*step-000001"):
        checkpoints.newest()
    assert sorted(path for path in folder.path.rglob("*") if path.name != ".lock") == [
        path for path in before if path.name != ".lock"
    ]


def test_a_broken_one_is_written_again(two, tmp_path):
    folder = Folder(shutil.copytree(two, tmp_path / "copy"))
    _flip(folder.path / "step-000002" / FILES[0])
    with folder.open() as checkpoints:
        newest = checkpoints.newest()
        assert newest is not None and newest.step == 1
    folder.write(2)
    Saved.at(folder.path / "step-000002").verify()
    assert folder.steps == [1, 2] and not list(folder.path.glob(".step*"))


def test_every_byte_of_a_manifest_counts(two, tmp_path):
    good = (two / "step-000002" / "MANIFEST.json").read_bytes()
    path = tmp_path / "MANIFEST.json"
    for place in range(0, len(good), 3):
        content = bytearray(good)
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"damaged|cannot be read|of version"):
            Manifest.read(tmp_path)


names = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\\/"), min_size=1).filter(
    lambda name: name not in (".", "..")
)
records = st.builds(FileRecord, st.integers(0, 2**60), st.text("0123456789abcdef", min_size=64, max_size=64))


@settings(max_examples=30)
@given(st.builds(Manifest, st.integers(0, 10**9), st.integers(1, 10**6), st.dictionaries(names, records)))
def test_a_manifest_is_read_as_it_was_written(tmp_path_factory, manifest):
    folder = tmp_path_factory.mktemp("manifest")
    manifest.write(folder)
    assert Manifest.read(folder) == manifest


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "state/../../outside"])
def test_a_manifest_names_files_of_its_folder_alone(tmp_path, name):
    Manifest(1, 1, {name: FileRecord(0, "0" * 64)}).write(tmp_path)
    with pytest.raises(CheckpointError, match="must lie in its folder"):
        Manifest.read(tmp_path)
