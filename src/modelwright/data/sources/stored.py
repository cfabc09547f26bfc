"""Bytes by their place, of a file or of memory, so that a row is read and its file is not."""

import io
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, cast

from modelwright.errors import RequestError

CHUNK = 4 * 2**20
"""Bytes that are looked through at once."""


class Stored(Protocol):
    """Bytes that do not change while they are read."""

    size: int

    def read(self, start: int, end: int) -> bytes:
        """The bytes of ``[start, end)``, or fewer where they end before."""
        ...

    def view(self) -> bytes:
        """All of them, as what `re` searches; of a file no more is in memory than the system wants there."""
        ...

    def open(self) -> IO[bytes]:
        """A file of one's own over them."""
        ...


class StoredFile:
    """A file, which is opened for each read: thousands of them may be one source, and any process or thread reads.

    Raises:
        RequestError: by any read, once the file is another than it was: what was found out of it holds no longer.
    """

    def __init__(self, path: Path):
        self.path = path
        self._status = _status(path.stat())
        self.size = self._status[0]

    def read(self, start: int, end: int) -> bytes:
        with self._descriptor() as descriptor:
            wanted, pieces = min(end, self.size) - start, []
            while wanted > 0 and (piece := os.pread(descriptor, wanted, min(end, self.size) - wanted)):
                pieces.append(piece)
                wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def view(self) -> bytes:
        if not self.size:
            return b""
        with self._descriptor() as descriptor:
            return cast(bytes, mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))

    def open(self) -> IO[bytes]:
        return self.path.open("rb")

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            raise RequestError(f"{self.path} was removed while its rows were read") from None
        try:
            if _status(os.fstat(descriptor)) != self._status:
                raise RequestError(f"{self.path} has changed while its rows were read: begin again")
            yield descriptor
        finally:
            os.close(descriptor)


def _status(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


class StoredBytes:
    """Bytes in memory, as an unpacked file that is small."""

    def __init__(self, content: bytes):
        self.content = content
        self.size = len(content)

    def read(self, start: int, end: int) -> bytes:
        return self.content[start:end]

    def view(self) -> bytes:
        return self.content

    def open(self) -> IO[bytes]:
        return io.BytesIO(self.content)


def chunks(stored: Stored, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """All bytes from ``start`` on, as (where they begin, at most `CHUNK` of them)."""
    while start < stored.size:
        chunk = stored.read(start, min(start + CHUNK, stored.size))
        if not chunk:
            return
        yield start, chunk
        start += len(chunk)
