"""Tables on stdout that fit the terminal: in columns, the last one wrapped, or each row as lines where it is narrow."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from unicodedata import east_asian_width

from modelwright.cli.console import write

UNLIMITED = 10_000
"""The width of what is no terminal: no line is broken in a file or for a program."""
LAST = 24
"""Characters that the last column must have to be wrapped in its place."""
GAP = "  "
Row = Sequence[str]


def output_width() -> int:
    """Characters in a line of stdout, as the terminal or COLUMNS says."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        return max(1, shutil.get_terminal_size().columns)
    return UNLIMITED


def write_lines(text: str) -> None:
    """Lines of prose, broken between words."""
    width = output_width()
    write("".join(f"{part}\n" for line in text.split("\n") for part in _wrapped(line, width)))


def write_table(rows: Sequence[Row], headings: Row | None = None, left: Sequence[int] = (0,)) -> None:
    """A table; columns but those at `left` are set to the right, except for a last one of words."""
    write("".join(f"{line.rstrip()}\n" for line in lines_of(rows, headings, left, output_width())))


def lines_of(rows: Sequence[Row], headings: Row | None, left: Sequence[int], width: int) -> list[str]:
    """The lines of a table that is at most `width` wide, if its longest word is."""
    everything = [*([headings] if headings else []), *rows]
    widths = [max(_width(row[column]) for row in everything) for column in range(len(everything[0]))]
    before = sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
    if before + widths[-1] <= width:
        return [GAP.join(_set(cell, size, at in left) for at, (cell, size) in enumerate(zip(row, widths, strict=True)))
                for row in everything]  # fmt: skip
    if len(widths) - 1 in left and width - before >= LAST:
        return [line for row in everything for line in _last_wrapped(row, widths, left, before, width)]
    title = [headings[0]] if headings and headings[0] else []
    return title + [line for row in rows for line in _stacked(row, headings, width)]


def _last_wrapped(row: Row, widths: list[int], left: Sequence[int], before: int, width: int) -> list[str]:
    first, *rest = _wrapped(row[-1], width - before) or [""]
    cells = [_set(cell, size, at in left) for at, (cell, size) in enumerate(zip(row[:-1], widths, strict=False))]
    return [GAP.join((*cells, first)), *(" " * before + line for line in rest)]


def _stacked(row: Row, headings: Row | None, width: int) -> list[str]:
    """The first cell, and below it each other one behind its heading."""
    name, *cells = row
    if headings is None and len(cells) == 1 and _width(name) + len(GAP) + _width(cells[0]) <= width:
        return [f"{name}{GAP}{cells[0]}"]
    named = zip(headings[1:] if headings else [""] * len(cells), cells, strict=True)
    filled = [(heading, cell) for heading, cell in named if cell]
    if len(filled) == 1 < len(cells):  # what has one value only has it under no heading
        filled = [("", filled[0][1])]
    lines = _wrapped(name, width)
    for heading, cell in filled:
        lines += [f"{GAP}{line}" for line in _wrapped(f"{heading} {cell}".strip(), width - len(GAP))]
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    indent = text[: len(text) - len(text.lstrip())]
    broken = textwrap.wrap(
        text, max(1, width), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return broken or [""]


def _set(cell: str, size: int, to_the_left: bool) -> str:
    room = " " * (size - _width(cell))
    return cell + room if to_the_left else room + cell


def _width(text: str) -> int:
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)
