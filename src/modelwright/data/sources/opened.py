"""An entry of ``data.train`` or ``data.eval`` opened: its containers one after another, their rows as examples."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from modelwright.data.examples import BrokenRow, Example, Source
from modelwright.data.formats import FORMATS, find_format, parsed, reader_of, unread
from modelwright.data.formats.fields import listed
from modelwright.data.formats.pictures import PictureFolder
from modelwright.data.rows import Container, Row
from modelwright.data.sources.found import DOCUMENT, find_containers, find_files
from modelwright.data.sources.kept import Kept
from modelwright.errors import ConfigError, RequestError

_TRIED = 100
"""Rows that are looked at for one that can be read, to find the format of all, and for names that nothing reads."""
_MOST_FILES = 64
"""Files that a fingerprint lists; more are one entry."""


class Asked(Protocol):
    """What of `configs.run`'s ``SourcePart`` is read here."""

    @property
    def path(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def name(self) -> str | None: ...


def open_source(part: Asked, root: Path | None, base: Path, cache: Path | None = None) -> Source:
    """Open the files of a source and find the format of its rows.

    Args:
        part: its path, format and name.
        root: ``data.root``, in which paths and pictures are looked for, and which pictures may not leave. None:
            pictures are relative to the file of their row.
        base: the folder of the run file, in which ``path`` and ``root`` are looked for.
        cache: ``data.cache``, relative to ``base``, where indexes, hashes and unpacked files are kept.

    Raises:
        ConfigError: no such format.
        RequestError: there are no such files, they are damaged, or no format fits their first row.
    """
    format = part.format
    if format not in ("auto", DOCUMENT, *FORMATS):
        known = ", ".join(("auto", DOCUMENT, *FORMATS))
        raise ConfigError(f"format of {part.path} must be one of {known}, got {format!r}", field="format")
    kept = Kept(None if cache is None else base / cache)
    containers = find_containers(part.path, _starts(root, base), kept, format)
    name = part.path if part.name is None else part.name
    if not sum(map(len, containers)):
        raise RequestError(f"{part.path} holds no rows")
    format = "text" if format == DOCUMENT else format
    pictures = PictureFolder(None if root is None else base / root)
    return Rows(name, containers, None if format == "auto" else format, pictures, kept)


def check_source(part: Asked, root: Path | None, base: Path) -> None:
    """Raise a RequestError where a source has no files; nothing is opened. Arguments are those of `open_source`."""
    find_files(part.path, _starts(root, base), part.format)


def _starts(root: Path | None, base: Path) -> list[Path]:
    """Where a relative path of a source is looked for."""
    return [base] if root is None else [base / root, base]


class Rows:
    """The rows of containers, read by one format.

    Args:
        name: what reports call the source.
        containers: one or more, not all empty.
        format: of all rows; None finds it by the first row that can be read.
        pictures: where those that rows name may lie.
        kept: where hashes are kept.
    """

    def __init__(
        self, name: str, containers: Sequence[Container], format: str | None, pictures: PictureFolder, kept: Kept
    ):
        self.name = name
        self._containers = tuple(containers)
        self._ends = [*accumulate(map(len, containers))]
        self._pictures, self._kept = pictures, kept
        self.format = self._found() if format is None else format
        self._read = reader_of(self.format)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: int) -> Example:
        found = parsed(self.format, self._row(row))
        return Example(found.place, self._read(found, self._pictures))

    def unread(self) -> list[str]:
        """See `Source`."""
        names: dict[str, None] = {}
        for row in range(min(len(self), _TRIED)):
            with suppress(BrokenRow):
                names |= dict.fromkeys(unread(self.format, parsed(self.format, self._row(row)).value))
        return [*names]

    def fingerprint(self) -> list[dict[str, Any]]:
        """Its files with size and hash, in order.

        Of more than some dozens of files there is one entry with the sum of their sizes and the hash of their names,
        sizes and hashes; so many pictures that are rows count by name and size alone.
        """
        files = [(file, container.format == "picture") for container in self._containers for file in container.files]
        if len(files) <= _MOST_FILES:
            return [self._entry(file) for file, _ in files]
        entries = [
            {"file": str(file), "size": file.stat().st_size} if named else self._entry(file) for file, named in files
        ]
        together = hashlib.sha256(repr(entries).encode("utf-8", "surrogatepass")).hexdigest()
        size = sum(entry["size"] for entry in entries)
        return [{"file": f"{len(files)} files of {self.name}", "size": size, "sha256": together}]

    def _entry(self, file: Path) -> dict[str, Any]:
        return {"file": str(file), "size": file.stat().st_size, "sha256": self._kept.sha256(file)}

    def _row(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise IndexError(row)
        number = bisect_right(self._ends, row)
        return self._containers[number][row - (self._ends[number - 1] if number else 0)]

    def _found(self) -> str:
        stated = {container.format for container in self._containers if len(container)}
        if len(stated) == 1 and None not in stated:
            return str(stated.pop())
        first: BrokenRow | None = None
        for row in range(min(len(self), _TRIED)):
            try:
                found = self._row(row)
            except BrokenRow as error:
                first = first or error
                continue
            format = find_format(found.value)
            if format is not None:
                return format
            names = listed(found.value) if isinstance(found.value, dict) else type(found.value).__name__
            raise RequestError(
                f"{found.place}: no format has a row of {names}: name one of {', '.join(FORMATS)} by format"
            )
        assert first is not None
        raise RequestError(f"none of the first {min(len(self), _TRIED)} rows of {self.name} can be read: {first}")
