"""Locks on files: one process writes into a run's folder, and nobody removes a checkpoint that another reads.

The system lets go of them when their process dies, however it dies.
"""

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from modelwright.errors import CheckpointError
from modelwright.training.checkpoints.manifest import MANIFEST

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None

LOCK = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_held: dict[Path, tuple[int, int]] = {}
_guard = threading.Lock()


class WriterLock:
    """The right to write into a run's folder of checkpoints; this process may take it several times.

    A lock of the process and not of the open file: workers that a process has forked do not keep it when that dies.
    """

    def __init__(self, path: Path):
        self._path: Path | None = path

    @classmethod
    def take(cls, folder: Path) -> Self:
        """Take it, and make the folder where there is none.

        Raises:
            CheckpointError: another process has it, which is named; or the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder.resolve() / LOCK
            with _guard:
                handle, count = _held.get(path, (-1, 0))
                _held[path] = (_locked(path) if count == 0 else handle, count + 1)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}") from error
        return cls(path)

    def release(self) -> None:
        """Give it back; a second time changes nothing."""
        path, self._path = self._path, None
        if path is None:
            return
        with _guard:
            handle, count = _held.pop(path)
            if count > 1:
                _held[path] = (handle, count - 1)
            else:
                os.close(handle)  # the file stays: removing it would let two processes lock two files of its name


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """While entered, no run removes the checkpoint in ``folder``.

    Raises:
        CheckpointError: it is gone.
    """
    try:
        handle = os.open(folder / MANIFEST, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}") from error
    try:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_SH)
        if not (folder / MANIFEST).exists():
            raise CheckpointError(f"{folder} was removed by the run that wrote it, which has newer ones")
        yield
    finally:
        os.close(handle)


@contextmanager
def removing(folder: Path) -> Iterator[bool]:
    """Whether nobody reads the checkpoint in ``folder``; while entered, nobody begins to."""
    if fcntl is None:
        yield True
        return
    handle = os.open(folder / MANIFEST, os.O_RDWR)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            yield error.errno not in _TAKEN
        else:
            yield True
    finally:
        os.close(handle)


def _locked(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    if fcntl is None:
        return handle
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            holder = os.read(handle, 200).decode("utf-8", "replace").strip() or "another process"
            os.close(handle)
            raise CheckpointError(
                f"{path.parent} is written by {holder}, which still runs: wait for it, end it, or name another output"
            ) from None
        return handle  # a file system without locks
    os.ftruncate(handle, 0)
    with suppress(OSError):  # a full disk
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return handle
