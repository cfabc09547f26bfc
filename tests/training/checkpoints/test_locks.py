"""One process writes into a run's folder; a lock dies with its process, and not with those that it forked."""

import os
import signal
import subprocess
import sys

import pytest

from modelwright.errors import CheckpointError
from modelwright.training.checkpoints.locks import WriterLock
from tests.training.checkpoints.states import Folder, save

HOLDER = """
import os, sys, time
from pathlib import Path
from modelwright.training.checkpoints.locks import WriterLock
lock = WriterLock.take(Path(sys.argv[1]))
worker = os.fork() if sys.argv[2] == "forks" else 0
if worker or sys.argv[2] != "forks":
    print(worker, flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Begins a process that holds the lock; gives it and the worker that it forked."""
    begun = []

    def begin(how="alone"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), how], stdout=subprocess.PIPE, text=True
        )
        begun.append(process)
        worker = int(process.stdout.readline())
        return process, worker

    yield begin
    for process in begun:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_another_process_is_noticed_until_it_dies(tmp_path, holder):
    process, worker = holder("forks")
    folder = Folder(tmp_path)
    checkpoints = folder.open()
    said = rf"is written by process {process.pid} on .*, which still runs: wait for it, end it, or name another output"
    for call in (checkpoints.newest, lambda: save(checkpoints, 1)):
        with pytest.raises(CheckpointError, match=said):
            call()
    assert not list(tmp_path.glob("*step*"))
    process.kill()
    process.wait()
    try:
        assert os.kill(worker, 0) is None  # what it forked still lives
        save(checkpoints, 1)
    finally:
        os.kill(worker, signal.SIGKILL)
        checkpoints.close()
    assert folder.steps == [1]


def test_one_process_takes_it_several_times(tmp_path):
    first, second = WriterLock.take(tmp_path), WriterLock.take(tmp_path)
    first.release()
    first.release()
    assert _taken_by_another(tmp_path)
    second.release()
    assert not _taken_by_another(tmp_path)


def _taken_by_another(folder) -> bool:
    """Whether a forked process finds the lock taken."""
    import fcntl

    child = os.fork()
    if child == 0:
        handle = os.open(folder / ".lock", os.O_RDWR)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        Folder(tmp_path / "file" / "checkpoints").open().newest()
