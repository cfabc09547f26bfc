"""Bytes by their place, of a file or of memory, so that a row is read and its file is not."""

import io
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol, cast

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
    """A file. Each process opens it for itself at its first read, and positions are never shared."""

    def __init__(self, path: Path):
        self.path = path
        self.size = path.stat().st_size
        self._opened: tuple[int, int] | None = None  # the process that opened it, and its descriptor

    def read(self, start: int, end: int) -> bytes:
        descriptor, wanted = self._descriptor(), end - start
        pieces: list[bytes] = []
        while wanted > 0:
            piece = os.pread(descriptor, wanted, end - wanted)
            if not piece:
                break
            pieces.append(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def view(self) -> bytes:
        if not self.size:
            return b""
        return cast(bytes, mmap.mmap(self._descriptor(), 0, access=mmap.ACCESS_READ))

    def open(self) -> IO[bytes]:
        return self.path.open("rb")

    def _descriptor(self) -> int:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __del__(self) -> None:
        opened = getattr(self, "_opened", None)
        if opened is not None and opened[0] == os.getpid():
            os.close(opened[1])


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
