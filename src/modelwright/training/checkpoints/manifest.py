"""The manifest of a checkpoint: what it is of, and the size and hash of each of its files; written last."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from modelwright.durable import write_durably
from modelwright.errors import CheckpointError

MANIFEST = "MANIFEST.json"
_VERSION = 1
_PIECE = 1 << 20
_HASHERS = 4


@dataclass(frozen=True)
class FileRecord:
    """What a file is when it is whole: its size in bytes, and the SHA-256 of them in hexadecimal digits."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint's manifest says.

    Attributes:
        step: how many optimizer steps had been taken.
        sequence: the number of the checkpoint among those of its output, in the order in which they were written; a
            run that goes on from an earlier step writes lower steps after higher ones.
        files: each file of the checkpoint but the manifest, by its path with ``/`` in it.
    """

    step: int
    sequence: int
    files: Mapping[str, FileRecord]

    @classmethod
    def of(cls, folder: Path, step: int, sequence: int) -> Self:
        """What the files of a folder are now; all of them are read."""
        names = sorted(files_in(folder))
        with ThreadPoolExecutor(_HASHERS) as pool:
            records = pool.map(lambda name: _record(folder / name), names)
            return cls(step, sequence, dict(zip(names, records, strict=True)))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a checkpoint, every byte of which is as it was written.

        Raises:
            CheckpointError: there is none, or it is damaged, or of a later version.
        """
        path = folder / MANIFEST
        try:
            text = path.read_bytes().decode("utf-8")
        except FileNotFoundError:
            raise CheckpointError(f"{folder} has no {MANIFEST}, which is written last") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        try:
            values = json.loads(text)
            version = values["version"]
            records = {name: FileRecord(**record) for name, record in values["files"].items()}
            manifest = cls(values["step"], values["sequence"], records)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: it is no manifest") from error
        if isinstance(version, int) and version > _VERSION:
            raise CheckpointError(f"{path} is of version {version}, and this release reads versions up to {_VERSION}")
        if manifest.text() != text:
            raise CheckpointError(f"{path} is damaged: its bytes are not those that were written")
        for name in manifest.files:
            if not _stays_inside(name):
                raise CheckpointError(f"{path} names the file {name!r}, which must lie in its folder")
        return manifest

    def write(self, folder: Path) -> None:
        """Write it into the folder whose files it lists."""
        write_durably(folder / MANIFEST, self.text())

    def text(self) -> str:
        """The file's content, which ends with the hash of what goes before it."""
        values: dict[str, Any] = {"version": _VERSION, "step": self.step, "sequence": self.sequence}
        values["files"] = {name: {"size": file.size, "sha256": file.sha256} for name, file in self.files.items()}
        values["sha256"] = hashlib.sha256(json.dumps(values).encode()).hexdigest()
        return json.dumps(values, indent=1) + "\n"

    def check(self, folder: Path, hashes: bool) -> None:
        """Raise a :class:`CheckpointError` unless every file is there and of its size and, if asked, of its hash."""
        for name, record in self.files.items():
            path = folder / name
            if not path.is_file():
                raise CheckpointError(f"{folder} lacks its file {name}")
            if (size := path.stat().st_size) != record.size:
                raise CheckpointError(f"{path} has {size} bytes, and {record.size} were written")
        if not hashes:
            return
        with ThreadPoolExecutor(_HASHERS) as pool:
            found = pool.map(lambda name: _hash(folder / name), self.files)
            for (name, record), sha256 in zip(self.files.items(), found, strict=True):
                if sha256 != record.sha256:
                    raise CheckpointError(f"{folder / name} is damaged: its bytes are not those that were written")

    @property
    def size(self) -> int:
        """Bytes of all files that it lists."""
        return sum(record.size for record in self.files.values())


def files_in(folder: Path) -> Iterator[str]:
    """The path of each file below a folder, with ``/`` in it; the manifest is left out."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST and not path.is_dir():
            yield name


def _stays_inside(name: str) -> bool:
    """Whether a path with ``/`` in it leads nowhere else."""
    return not {"", ".", ".."} & set(name.split("/")) and not {"\\", "\0"} & set(name)


def _record(path: Path) -> FileRecord:
    return FileRecord(path.stat().st_size, _hash(path))


def _hash(path: Path) -> str:
    try:
        with path.open("rb", buffering=0) as file:
            digest = hashlib.sha256()
            while piece := file.read(_PIECE):
                digest.update(piece)
            return digest.hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
