"""CSV and TSV as RFC 4180 has them: a record of names first, line ends within quotes, and quotes doubled in them."""

import re
from functools import partial
from pathlib import Path

import numpy as np

from modelwright.data.examples import BrokenRow, Place
from modelwright.data.sources.kept import Kept
from modelwright.data.sources.lines import BOM, IndexedFile, newlines_before, parse_words
from modelwright.data.sources.stored import Stored
from modelwright.errors import RequestError


class Separated(IndexedFile):
    """The records after the first, each as a mapping of the first record's names to strings.

    Raises:
        RequestError: there is no record of names, or two of its names are equal.
    """

    def __init__(self, path: Path, shown: str, kept: Kept, separator: str):
        self._cell = re.compile(_CELL.format(separator).encode())
        record = re.compile(_RECORD.format(cell=_CELL.format(separator), separator=separator).encode())
        super().__init__(path, shown, kept, f"records-{ord(separator)}", partial(index_records, record), self._values)
        header = self._index[:, 0] if self._index.shape[1] else np.zeros(3, np.int64)
        place = Place(shown, 1)
        self._names = self._cells(place, self.stored.read(int(header[0]), int(header[1])))
        twice = next((name for name in self._names if self._names.count(name) > 1), None)
        if twice is not None or not any(self._names):
            reason = f"it has the name {twice!r} twice" if twice else "it is empty"
            raise RequestError(f"{place}: the first record must be the names of the columns: {reason}")
        self._index = self._index[:, 1:]

    def _values(self, place: Place, record: bytes) -> dict[str, str]:
        cells = self._cells(place, record)
        if len(cells) != len(self._names):
            raise BrokenRow(place, f"it has {len(cells)} cells, and the first record names {len(self._names)}")
        return dict(zip(self._names, cells, strict=True))

    def _cells(self, place: Place, record: bytes) -> list[str]:
        cells, position = [], 0
        while True:
            found = self._cell.match(record, position)
            assert found is not None  # a cell may be empty
            cells.append(parse_words(place, _unquoted(place, found[0])))
            position = found.end()
            if position >= len(record):
                return cells
            position += 1  # the separator


_CELL = r'(?>"(?>[^"]++|"")*+"[^{0}\r\n]*+|[^{0}\r\n]*+)'
_QUOTED = re.compile(rb'"((?:[^"]++|"")*+)"(.*)', re.DOTALL)
_RECORD = r"{cell}(?:{separator}{cell})*+"


def _unquoted(place: Place, cell: bytes) -> bytes:
    """What a cell stands for; as in Python's ``csv``, what follows the closing quote is a part of it."""
    if not cell.startswith(b'"'):
        return cell
    quoted = _QUOTED.fullmatch(cell)
    if quoted is None:
        raise BrokenRow(place, "a quote is not closed")
    return quoted[1].replace(b'""', b'"') + quoted[2]


def index_records(record: re.Pattern[bytes], stored: Stored) -> np.ndarray:
    """int64 [3, records], as `lines.index_lines`, of the records that are not blank lines; the first is of names."""
    view = stored.view()
    found: list[tuple[int, int]] = []
    position = len(BOM) if stored.read(0, len(BOM)) == BOM else 0
    while position < stored.size:
        match = record.match(view, position)
        assert match is not None  # a record may be empty
        start, end = match.span()
        if end > start:
            found.append((start, end))
        position = end + (2 if view[end : end + 2] == b"\r\n" else 1)
    bounds = np.array(found, np.int64).reshape(-1, 2).T
    return np.concatenate([bounds, newlines_before(stored, bounds[0])[None] + 1])
