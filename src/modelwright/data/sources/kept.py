"""What was worked out of a file once and is kept in a cache folder: its hash, its index, its unpacked form.

An entry is found by the file's path, size and time of last change; a file that changed has no entry. Without a folder
everything is worked out again, and what is unpacked is held in memory.
"""

import gzip
import hashlib
import importlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from modelwright.data.sources.stored import CHUNK, Stored, StoredBytes, StoredFile
from modelwright.errors import RequestError

LARGEST_IN_MEMORY = 256 * 2**20
"""Bytes of an unpacked file that are held in memory where no cache folder is given."""
PACKED = (".gz", ".tgz", ".zst")


class Kept:
    """The cache folder of a run's data; ``folder`` None keeps nothing."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder

    def sha256(self, path: Path) -> str:
        """The file's hash, in hexadecimal."""
        entry = self._entry(path, "sha256")
        if entry is not None and entry.exists():
            return entry.read_text(encoding="ascii")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if entry is not None:
            write_whole(entry, lambda file: file.write(found.encode("ascii")))
        return found

    def array(self, path: Path, what: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that was made of a file, such as the offsets of its rows, memory-mapped where it is kept."""
        entry = self._entry(path, f"{what}.npy")
        if entry is None:
            return make()
        if not entry.exists():
            made = make()
            write_whole(entry, lambda file: np.save(file, made, allow_pickle=False))
        return np.load(entry, mmap_mode="r", allow_pickle=False)

    def made(self, path: Path, name: str, write: Callable[[IO[bytes]], Any]) -> Path | None:
        """A file that was made of a file, by its path; None where nothing is kept."""
        entry = self._entry(path, name)
        if entry is not None and not entry.exists():
            write_whole(entry, write)
        return entry

    def opened(self, path: Path) -> Stored:
        """The file's bytes, unpacked where its name ends in one of `PACKED`.

        Raises:
            RequestError: it is damaged, too large to be unpacked into memory, or packed by what is not installed.
        """
        if path.suffix.lower() not in PACKED:
            return StoredFile(path)
        try:
            entry = self.made(path, "unpacked", lambda file: _unpack(path, file))
            return StoredBytes(_unpacked(path)) if entry is None else StoredFile(entry)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise RequestError(f"{path} is damaged or cut short: {error}") from error

    def _entry(self, path: Path, name: str) -> Path | None:
        if self.folder is None:
            return None
        status = path.stat()
        facts = json.dumps([str(path.resolve()), status.st_size, status.st_mtime_ns])
        key = hashlib.sha256(facts.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        return self.folder / "files" / f"{key}-{name}"


def write_whole(entry: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all, whoever else writes it at the same time."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    unfinished = entry.with_name(f".{entry.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(entry)
    finally:
        unfinished.unlink(missing_ok=True)


def _unpack(path: Path, file: IO[bytes]) -> None:
    with _unpacker(path) as packed:
        shutil.copyfileobj(packed, file, CHUNK)


def _unpacked(path: Path) -> bytes:
    with _unpacker(path) as packed:
        content = packed.read(LARGEST_IN_MEMORY + 1)
    if len(content) > LARGEST_IN_MEMORY:
        raise RequestError(
            f"{path} unpacks to more than {LARGEST_IN_MEMORY // 2**20} MiB, for which memory is not used: "
            "name a folder in data.cache, where it is unpacked once, or unpack it yourself"
        )
    return content


def _unpacker(path: Path) -> IO[bytes]:
    if path.suffix.lower() != ".zst":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if sys.version_info >= (3, 14):
        return importlib.import_module("compression.zstd").open(path, "rb")
    try:
        return importlib.import_module("zstandard").open(path, "rb")
    except ModuleNotFoundError:
        raise RequestError(
            f"{path} is packed by zstd, which Python 3.14 or the package zstandard unpacks, and neither is here: "
            "pip install zstandard"
        ) from None
