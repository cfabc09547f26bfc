"""JSON files: a list of objects, one object around such a list, one object that is a row, or an object a line.

Where each object stands is found once, and only those asked for are read.
"""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from modelwright.configs.strict_json import NotJson, parse_json
from modelwright.data.formats.fields import listed
from modelwright.data.formats.table import find_format
from modelwright.data.sources.kept import Kept
from modelwright.data.sources.lines import BOM, IndexedFile, index_lines, newlines_before, parse_row
from modelwright.data.sources.stored import Stored
from modelwright.errors import RequestError

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}"]', re.DOTALL)
_BETWEEN = re.compile(rb"\s*+,\s*+")
_ENDS = {b"]": b"[", b"}": b"{"}
_SPACE = re.compile(rb"\s*+")
_COLON = re.compile(rb"\s*+:\s*+")
_LIST = re.compile(rb"\[\s*+[{\]]")
"""How a list of objects begins, or one of nothing."""


class JsonFile(IndexedFile):
    """The objects of a file, in order; a row's line is that on which it begins.

    An object that fills the file is a row where its names are those of a format. Otherwise its rows are those of the
    one list of objects that it holds, whatever the name of that and whatever stands beside it.

    Raises:
        RequestError: the file is none of these; what the objects hold is read, and may be broken, one by one.
    """

    def __init__(self, path: Path, shown: str, kept: Kept):
        super().__init__(path, shown, kept, "json", lambda stored: index_json(stored, shown), parse_row)


def index_json(stored: Stored, shown: str) -> np.ndarray:
    """int64 [3, rows], as `lines.index_lines`, of the objects of a JSON file."""
    view = stored.view()
    begin = _after_space(view, len(BOM) if view[: len(BOM)] == BOM else 0)
    if view[begin : begin + 1] == b"[":
        found, end = _objects(stored, view, shown, begin)
        if (rest := _after_space(view, end)) < stored.size:
            raise _no_list(stored, shown, rest, "something follows the list")
        return _index(stored, found)
    values, end = _values(view, begin)
    if not end:
        return index_lines(stored)
    if _after_space(view, end) < stored.size:
        if view[begin:end].count(b"\n"):
            raise _no_list(stored, shown, end, "something follows an object of several lines")
        return index_lines(stored)
    return _index(stored, _rows_of_object(stored, view, shown, (begin, end), values))


def _rows_of_object(
    stored: Stored, view: bytes, shown: str, bounds: tuple[int, int], values: list[tuple[str, int]]
) -> list[tuple[int, int]]:
    """Where the rows are of an object that fills its file, by its names and where their values begin."""
    if find_format(dict(values)) is not None:
        return [bounds]
    lists = [(name, start) for name, start in values if _LIST.match(view, start)]
    if len(lists) != 1:
        several = f"several lists of objects ({listed(name for name, _ in lists)})" if lists else "no list of objects"
        raise RequestError(
            f"{shown} is one object with the names {listed(dict(values))}, which is no row of a known format and holds "
            f"{several}: write the rows that are meant to a file of their own, as a list or an object a line"
        )
    found, end = _objects(stored, view, shown, lists[0][1])
    try:
        parse_json(view[bounds[0] : lists[0][1]] + b"[]" + view[end : bounds[1]], f"what stands around {lists[0][0]!r}")
    except NotJson as error:
        raise RequestError(f"{shown}: {error}") from None
    return found


def _values(view: bytes, begin: int) -> tuple[list[tuple[str, int]], int]:
    """The names of the object that begins there, where their values begin, and where it ends; 0 where it does not."""
    opened: list[bytes] = []
    values: list[tuple[str, int]] = []
    for token in _TOKEN.finditer(view, begin):
        mark = token[0]
        if mark in (b"{", b"["):
            opened.append(mark)
        elif mark in _ENDS:
            if not opened or opened.pop() != _ENDS[mark]:
                break
            if not opened:
                return values, token.end()
        elif mark == b'"' or not opened:
            break
        elif len(opened) == 1 and (colon := _COLON.match(view, token.end())):
            values.append((mark[1:-1].decode("utf-8", "replace"), colon.end()))
    return values, 0


def _objects(stored: Stored, view: bytes, shown: str, begin: int) -> tuple[list[tuple[int, int]], int]:
    """Where the objects of the list that begins there are, and where it ends."""
    opened: list[bytes] = []
    found: list[tuple[int, int]] = []
    start = begin
    for token in _TOKEN.finditer(view, begin):
        mark = token[0]
        if mark in (b"{", b"["):
            if len(opened) == 1:
                start = token.start()
                if mark == b"[":
                    raise _no_list(stored, shown, start, "a list stands where an object must")
            opened.append(mark)
        elif mark in _ENDS:
            if not opened or opened.pop() != _ENDS[mark]:
                raise _no_list(stored, shown, token.start(), f"{mark.decode()} closes nothing")
            if len(opened) == 1:
                found.append((start, token.end()))
            if not opened:
                _check_between(stored, view, shown, found, begin + 1, token.start())
                return found, token.end()
        elif len(opened) == 1 or mark == b'"':
            what = "a string is not closed" if mark == b'"' else "a string stands where an object must"
            raise _no_list(stored, shown, token.start(), what)
    raise _no_list(stored, shown, stored.size, "the list is not closed")


def _check_between(
    stored: Stored, view: bytes, shown: str, found: list[tuple[int, int]], first: int, last: int
) -> None:
    """Between two objects stands a comma and nothing else, and around the first and the last nothing."""
    for start, end in [(first, found[0][0]), (found[-1][1], last)] if found else [(first, last)]:
        if _SPACE.fullmatch(view, start, end) is None:
            raise _no_list(stored, shown, start, "something else than objects stands in it")
    for (_, start), (end, _) in pairwise(found):
        if _BETWEEN.fullmatch(view, start, end) is None:
            raise _no_list(stored, shown, start, "a comma must stand between two objects, and nothing else")


def _after_space(view: bytes, offset: int) -> int:
    space = _SPACE.match(view, offset)
    assert space is not None  # there may be none of it
    return space.end()


def _index(stored: Stored, found: list[tuple[int, int]]) -> np.ndarray:
    bounds = np.array(found, np.int64).reshape(-1, 2).T
    return np.concatenate([bounds, newlines_before(stored, bounds[0])[None] + 1])


def _no_list(stored: Stored, shown: str, offset: int, reason: str) -> RequestError:
    line = int(newlines_before(stored, np.array([offset]))[0]) + 1
    return RequestError(f"{shown}:{line}: a JSON file must be a list of objects, or an object a line: {reason}")
