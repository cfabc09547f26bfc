"""Files of which only the offsets of their rows are held, and of those the ones with a row on each line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from modelwright.configs.strict_json import NotJson, parse_json
from modelwright.data.examples import BrokenRow, Place
from modelwright.data.rows import Row
from modelwright.data.sources.kept import Kept
from modelwright.data.sources.stored import Stored, chunks
from modelwright.errors import RequestError

LONGEST_ROW = 256 * 2**20
"""Bytes of the longest row that is read."""
BOM = b"\xef\xbb\xbf"
_WIDE = (b"\xff\xfe", b"\xfe\xff")
_NEWLINE = 10
_SPACE = 32
"""This byte and those below it are white space or control characters."""

Parse = Callable[[Place, bytes], object]


class IndexedFile:
    """The rows of a file, by an index of where they stand.

    Args:
        path: the file, packed or not.
        shown: its name in errors.
        kept: where its index is kept.
        what: what its index is of, which names it.
        index: what makes int64 [3, rows] of it: where each row begins and ends, and its line.
        parse: what makes a value of a row's bytes, or raises `BrokenRow`.
        format: the format of its rows, where all such files have one.
    """

    def __init__(
        self,
        path: Path,
        shown: str,
        kept: Kept,
        what: str,
        index: Callable[[Stored], np.ndarray],
        parse: Parse,
        format: str | None = None,
    ):
        self.files = (path,)
        self.format = format
        self.shown = shown
        self._parse = parse
        self.stored = kept.opened(path)
        if self.stored.read(0, 2) in _WIDE:
            raise RequestError(f"{shown} is UTF-16, and only UTF-8 is read: convert it")
        self._index = kept.array(path, what, lambda: index(self.stored))

    def __len__(self) -> int:
        return self._index.shape[1]

    def __getitem__(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise IndexError(row)
        start, end, line = (int(number) for number in self._index[:, row])
        place = Place(self.shown, line)
        if end - start > LONGEST_ROW:
            raise BrokenRow(place, f"it is {end - start} bytes long, and at most {LONGEST_ROW} are read")
        value = self._parse(place, self.stored.read(start, end).removesuffix(b"\r"))
        return Row(place, value, self.files[0].parent)


class JsonLines(IndexedFile):
    """The lines that hold more than white space, each a JSON object.

    A byte order mark at the beginning and a carriage return before a line's end belong to no row, and the last line
    needs no end.
    """

    def __init__(self, path: Path, shown: str, kept: Kept):
        super().__init__(path, shown, kept, "lines", index_lines, parse_row)


class TextLines(IndexedFile):
    """The lines that hold more than white space, as `JsonLines` cuts them, each a string."""

    def __init__(self, path: Path, shown: str, kept: Kept):
        super().__init__(path, shown, kept, "lines", index_lines, parse_words, "text")


class TextDocument(IndexedFile):
    """A whole file as one row."""

    def __init__(self, path: Path, shown: str, kept: Kept):
        super().__init__(path, shown, kept, "whole", _index_whole, parse_words, "text")


def parse_row(place: Place, line: bytes) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = parse_json(line)
    except NotJson as error:
        raise BrokenRow(place, str(error)) from None
    if not isinstance(value, dict):
        raise BrokenRow(place, f"a row must be a JSON object of names and values, not a {_kind(value)}")
    return value


def parse_words(place: Place, line: bytes) -> str:
    """A string in UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} is 0x{line[error.start]:02x}"
        raise BrokenRow(place, f"it is not UTF-8: {byte}") from None


def _kind(value: object) -> str:
    names = {list: "list", str: "string", bool: "truth value", int: "number", float: "number", type(None): "null"}
    return names[type(value)]


def _after_mark(stored: Stored) -> int:
    return len(BOM) if stored.read(0, len(BOM)) == BOM else 0


def _index_whole(stored: Stored) -> np.ndarray:
    start = _after_mark(stored)
    return np.array([[start], [stored.size], [1]])[:, : int(stored.size > start)]


def index_lines(stored: Stored) -> np.ndarray:
    """int64 [3, rows]: where each line that is not blank begins and ends, without its newline, and its number."""
    found: list[np.ndarray] = []
    begin = _after_mark(stored)
    line, start, filled = 1, begin, False  # the line that is open: its number, where it begins, whether it holds words
    for offset, chunk in chunks(stored, begin):
        codes = np.frombuffer(chunk, np.uint8)
        newlines = np.flatnonzero(codes == _NEWLINE)
        pieces = np.concatenate([[0], newlines + 1])  # where the lines begin, the last of which is open
        holds = np.logical_or.reduceat(codes > _SPACE, pieces[pieces < len(codes)])
        holds[0] |= filled
        ends = newlines + offset
        if len(ends):
            starts = np.concatenate([[start], ends[:-1] + 1])
            found.append(np.stack([starts, ends, np.arange(line, line + len(ends))])[:, holds[: len(ends)]])
            line, start = line + len(ends), int(ends[-1]) + 1
        filled = len(holds) > len(ends) and bool(holds[-1])
    if filled:
        found.append(np.array([[start], [stored.size], [line]]))
    return np.concatenate(found, axis=1) if found else np.zeros((3, 0), np.int64)


def newlines_before(stored: Stored, offsets: np.ndarray) -> np.ndarray:
    """int64 [n]: how many lines end before each of ``offsets``, which ascend."""
    counts, passed, done = np.zeros(len(offsets), np.int64), 0, 0
    for offset, chunk in chunks(stored):
        newlines = np.flatnonzero(np.frombuffer(chunk, np.uint8) == _NEWLINE)
        until = int(np.searchsorted(offsets, offset + len(chunk)))
        counts[done:until] = passed + np.searchsorted(newlines, offsets[done:until] - offset)
        passed, done = passed + len(newlines), until
    counts[done:] = passed
    return counts
