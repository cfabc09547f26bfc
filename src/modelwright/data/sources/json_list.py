"""A JSON file that is one list of objects: where each stands is found once, and only those asked for are read."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from modelwright.data.sources.kept import Kept
from modelwright.data.sources.lines import BOM, IndexedFile, newlines_before, parse_row
from modelwright.data.sources.stored import Stored
from modelwright.errors import RequestError

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}"]', re.DOTALL)
_BETWEEN = re.compile(rb"\s*+,\s*+")
_ENDS = {b"]": b"[", b"}": b"{"}
_SPACE = re.compile(rb"\s*+")


class JsonList(IndexedFile):
    """The objects of a list, in order; a row's line is that on which it begins.

    Raises:
        RequestError: the file is no list of objects; what the objects hold is read, and may be broken, one by one.
    """

    def __init__(self, path: Path, shown: str, kept: Kept):
        super().__init__(path, shown, kept, "objects", lambda stored: index_list(stored, shown), parse_row)


def begins_list(stored: Stored) -> bool:
    """Whether the first character that is no white space opens a list."""
    return stored.read(0, 4096).removeprefix(BOM).lstrip()[:1] == b"["


def index_list(stored: Stored, shown: str) -> np.ndarray:
    """int64 [3, rows], as `lines.index_lines`, of the objects of a list."""
    view = stored.view()
    opened: list[bytes] = []
    found: list[tuple[int, int]] = []
    start, closed = 0, -1
    for token in _TOKEN.finditer(view):
        mark = token[0]
        if closed >= 0:
            raise _no_list(stored, shown, token.start(), "something follows the list")
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
            closed = token.end() if not opened else -1
        elif len(opened) == 1 or mark == b'"':
            what = "a string is not closed" if mark == b'"' else "a string stands where an object must"
            raise _no_list(stored, shown, token.start(), what)
    if closed < 0:
        raise _no_list(stored, shown, stored.size, "the list is not closed")
    _check_between(stored, view, shown, found, closed)
    bounds = np.array(found, np.int64).reshape(-1, 2).T
    return np.concatenate([bounds, newlines_before(stored, bounds[0])[None] + 1])


def _check_between(stored: Stored, view: bytes, shown: str, found: list[tuple[int, int]], closed: int) -> None:
    """Between two objects stands a comma and nothing else, and around the first and the last nothing."""
    first = view.find(b"[") + 1
    edges = [(first, found[0][0]), (found[-1][1], closed - 1)] if found else [(first, closed - 1)]
    for start, end in [*edges, (closed, stored.size)]:
        if _SPACE.fullmatch(view, start, end) is None:
            raise _no_list(stored, shown, start, "something else than objects stands in it")
    for (_, start), (end, _) in pairwise(found):
        if _BETWEEN.fullmatch(view, start, end) is None:
            raise _no_list(stored, shown, start, "a comma must stand between two objects, and nothing else")


def _no_list(stored: Stored, shown: str, offset: int, reason: str) -> RequestError:
    line = int(newlines_before(stored, np.array([offset]))[0]) + 1
    return RequestError(f"{shown}:{line}: a JSON file must be a list of objects, or an object a line: {reason}")
