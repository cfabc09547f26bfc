"""Files that a command writes in one piece: whole or not at all, or a sentence that says why."""

import errno
import os
from pathlib import Path

import pytest

from modelwright.cli import files
from modelwright.cli.exit_status import status_of
from modelwright.cli.files import check_place, write_whole
from modelwright.errors import CheckpointError, RequestError
from tests.checkpoints.tiny import PICTURE


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_cannot_be_finished_is_not_begun(tmp_path, monkeypatch):
    target = tmp_path / "drawn.png"
    target.write_bytes(b"before")
    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(RequestError, match=r"^--draw x: the file cannot be written: No space left on device$") as info:
        write_whole(target, b"after", "--draw x")
    assert status_of(info.value) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["drawn.png"] and target.read_bytes() == b"before"
    with pytest.raises(RequestError, match="No space left"):
        write_whole(Path("/dev/full"), b"x", "--draw x")


def test_what_is_written_whole_follows_links_and_keeps_rights(tmp_path):
    target, link = tmp_path / "a.svg", tmp_path / "b.svg"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_whole(link, b"new", "it")
    assert (target.read_text(), link.is_symlink(), target.stat().st_mode & 0o777) == ("new", True, 0o640)
    umask = os.umask(0)
    os.umask(umask)
    write_whole(tmp_path / "c.svg", b"new", "it")
    assert (tmp_path / "c.svg").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_place_where_nothing_can_be_written(tmp_path, monkeypatch):
    check_place(tmp_path / "new", "it")
    for path, sentence in (
        (tmp_path, "it: it is a folder, and must be a file"),
        (tmp_path / "gone" / "a", f"it: there is no folder {tmp_path / 'gone'}"),
    ):
        with pytest.raises(RequestError) as info:
            check_place(path, "it")
        assert (str(info.value), status_of(info.value)) == (sentence, 2)
    monkeypatch.setattr(files, "_may_write", lambda _: False)  # root may write wherever a disk lets it
    with pytest.raises(RequestError) as info:
        check_place(tmp_path / "new", "it")
    assert str(info.value) == f"it: the file cannot be written, since {tmp_path} is read-only"
    assert status_of(info.value) == 1


@pytest.mark.parametrize(
    "args",
    [
        ("plan", "vl2-nano", "--plot", "{folder}/a.svg"),
        ("generate", "{v2}", "-i", "{folder}/in", "-o", "{folder}/out"),
        ("chat", "{vl2}", "Hello", "--image", PICTURE, "--draw", "{folder}/a.png"),
        ("complete-image", "--keep", 0, "-o", "{folder}/a.png"),
    ],
)
def test_a_read_only_folder_is_told_before_anything_is_computed(run, v2, vl2, tmp_path, monkeypatch, args):
    (tmp_path / "in").write_text("")
    monkeypatch.setattr(files, "_may_write", lambda _: False)
    ended = run(*(str(each).format(folder=tmp_path, v2=v2, vl2=vl2) for each in args))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.endswith(f"the file cannot be written, since {tmp_path} is read-only\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_a_full_disk_leaves_no_folder(run, v2, tmp_path, monkeypatch, command):
    monkeypatch.setattr("modelwright.checkpoints.shards.save_file", full)
    ended = run(command, v2, tmp_path / "new")
    assert (ended.code, ended.err) == (1, f"modelwright: {tmp_path}/new cannot be written: No space left on device\n")
    assert not list(tmp_path.iterdir())


def test_what_ends_with_which_status():
    for cause, status in ((errno.ENOSPC, 1), (errno.EROFS, 1), (errno.ENOENT, 2), (errno.ENAMETOOLONG, 2)):
        error = CheckpointError("it cannot be")
        error.__cause__ = OSError(cause, os.strerror(cause))
        assert (status_of(error), status_of(error.__cause__)) == (status, status)
    assert status_of(CheckpointError("it cannot be")) == 2


@pytest.mark.parametrize("command", [("convert",), ("quantize",), ("export", "onnx"), ("checkpoint", "export")])
def test_no_folder_called_as_streams_are_is_made(command, v2, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    ended = run(*command, str(v2), "-")
    assert (ended.code, ended.out) == (2, "")
    assert "OUT is -, which stands for a stream, and what is made is none: name a place for it" in ended.err
    assert not [*tmp_path.iterdir()]
