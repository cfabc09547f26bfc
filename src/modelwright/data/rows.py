"""A row as its file holds it, before anybody asks what it means."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from modelwright.data.examples import Place


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        place: where it stands.
        value: what it holds: a mapping of names to values, or what a container makes of files without names (a string
            of words, an array of tokens).
        folder: what paths in it are relative to; None where it came from no folder.
        members: files that came with it, by the names that it may call them.
    """

    place: Place
    value: Any
    folder: Path | None = None
    members: Mapping[str, bytes] = field(default_factory=dict)


class Container(Protocol):
    """Rows of one file, or of several that belong together, by number.

    Attributes:
        files: what they are read from, in order.
        format: the one format of its rows, where the container has only one; None leaves it to the rows.
    """

    files: tuple[Path, ...]
    format: str | None

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Row:
        """One row; raises `BrokenRow` where it cannot be read, and IndexError outside of ``range(len(self))``."""
        ...
