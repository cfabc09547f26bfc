"""A full disk, a folder that became read-only, a limit on files: the run goes on, and its good checkpoints stay."""

import builtins
import errno
import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modelwright.training.checkpoints import CheckpointsFailed, Saved
from tests.training.checkpoints.states import Folder, Part, empty, save, state


class Disk:
    """Lets so many operations on files be done in a folder, and refuses the next ones."""

    def __init__(self, monkeypatch, folder: Path, code: int = errno.ENOSPC):
        self.folder, self.code, self.left, self.refused = folder, code, 10**9, 0
        real = io.open

        def opened(file, mode="r", *args, **kwargs):
            if self.concerns(file) and set(mode) & set("wxa+"):
                self.ask(file)
                return Written(real(file, mode, *args, **kwargs), self)
            return real(file, mode, *args, **kwargs)

        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr(builtins, "open", opened)
        for name in ("mkdir", "rename", "replace", "fsync"):
            monkeypatch.setattr(os, name, self.asking(getattr(os, name)))

    def concerns(self, file) -> bool:
        return isinstance(file, int) or os.fspath(file).startswith(str(self.folder))

    def asking(self, function):
        def asked(first, *args, **kwargs):
            if self.concerns(first):
                self.ask(first)
            return function(first, *args, **kwargs)

        return asked

    def ask(self, file) -> None:
        self.left -= 1
        if self.left < 0:
            self.refused += 1
            raise OSError(self.code, os.strerror(self.code), None if isinstance(file, int) else os.fspath(file))


class Written:
    """A file whose writes the disk may refuse."""

    def __init__(self, file, disk: Disk):
        self._file, self._disk = file, disk

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def write(self, content):
        self._disk.ask(self._file.name)
        return self._file.write(content)


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_at_any_operation(tmp_path, monkeypatch, every):
    """Whichever operation is the first that fails: one note, the good checkpoint stays, the next is written."""
    disk = Disk(monkeypatch, tmp_path)
    noted = 0
    for allowed in range(0, 400, every):
        disk.left, disk.refused = 10**9, 0
        folder = Folder(tmp_path / str(allowed), Part(keep=1))
        folder.write(1)
        with folder.open() as checkpoints:
            disk.left = allowed
            save(checkpoints, 2)
            disk.left = 10**9
            newest = checkpoints.newest()
            assert newest is not None and newest.step in (1, 2)
            newest.verify()
            checkpoints.load(newest, empty())
            if not disk.refused:
                break
            assert len(folder.notes) == 1 and os.strerror(errno.ENOSPC) in folder.notes[0]
            noted += 1
            save(checkpoints, 3)
        assert folder.steps == [3] and not list(folder.path.glob(".step*"))
        assert len(folder.notes) == 1
    assert noted > 60 / every and not disk.refused


@pytest.mark.parametrize("async_", [True, False])
def test_two_failures_in_a_row_end_the_run(tmp_path, monkeypatch, async_):
    folder = Folder(tmp_path / "run", Part(async_=async_))
    folder.write(1)
    disk = Disk(monkeypatch, tmp_path, errno.EROFS)
    checkpoints = folder.open()
    checkpoints.open()
    disk.left = 0
    save(checkpoints, 2)
    with pytest.raises(CheckpointsFailed, match=r"step 3 was not written: .*Read-only file system; nor was"):
        save(checkpoints, 3)
        save(checkpoints, 4)  # where a thread writes, it is heard of now
    assert len(folder.notes) == 1 and "step 2 was not written" in folder.notes[0]
    disk.left = 10**9
    checkpoints.close()
    assert folder.steps == [1]
    Saved.at(folder.path / "step-000001").verify()


def test_failures_with_a_success_between_end_nothing(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "run")
    disk = Disk(monkeypatch, tmp_path)
    with folder.open() as checkpoints:
        for step in range(1, 9):
            disk.left = 5 if step % 2 else 10**9
            save(checkpoints, step)
    assert len(folder.notes) == 4 and folder.steps == [4, 6, 8]


def test_the_last_one_is_tried_again_and_then_missed(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "run", Part(async_=True))
    folder.write(1)
    disk = Disk(monkeypatch, tmp_path)
    with folder.open() as checkpoints:
        disk.left = 3
        save(checkpoints, 2)
        checkpoints._job.join()
        disk.left = 10**9
        checkpoints.wait()
        assert folder.steps == [1, 2]
        disk.left = 3
        save(checkpoints, 3)
        with pytest.raises(CheckpointsFailed, match="step 3"):
            checkpoints.wait()
        disk.left = 10**9
    assert folder.steps == [1, 2]


def test_an_error_of_ours_is_not_taken_for_the_disks(tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("modelwright.training.checkpoints.checkpoints.write_tensors", broken)
    folder = Folder(tmp_path, Part(async_=True))
    with folder.open() as checkpoints:
        save(checkpoints, 1)
        with pytest.raises(ZeroDivisionError):
            checkpoints.wait()
    assert not list(tmp_path.glob("*step*"))


LIMITED = """
import resource, sys
import torch
from tests.training.checkpoints.states import Folder, facts, state
folder = Folder(sys.argv[1])
folder.path = __import__("pathlib").Path(sys.argv[1])
folder.write(1)
big = {"model.weight": torch.ones(1 << 20)}
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
with folder.open() as checkpoints:
    checkpoints.save(2, big, facts(2), {})
    assert len(folder.notes) == 1 and "File too large" in folder.notes[0], folder.notes
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    checkpoints.save(3, big, facts(3), {})
assert folder.steps == [1, 3], folder.steps
assert not list(folder.path.glob(".step*"))
"""


@pytest.mark.slow
def test_a_limit_of_the_system_on_the_size_of_files(tmp_path):
    """The refusal comes from the system itself, out of torch's writer of zip files."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_staged_tensors_are_those_of_the_step(tmp_path):
    with Folder(tmp_path, Part(async_=True)).open() as checkpoints:
        checkpoints.save(1, state(1), {}, {})
        checkpoints.save(2, {"model.weight": torch.ones(2, 2)}, {}, {})  # fewer, and of another shape
        checkpoints.wait()
        into = {"model.weight": torch.zeros(2, 2)}
        checkpoints.load(Saved.at(tmp_path / "step-000002"), into)
    assert torch.equal(into["model.weight"], torch.ones(2, 2))
