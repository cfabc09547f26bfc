"""What is served in an input of ``modelwright generate`` as it stands, and may not be meant: told once, in a line."""

import json
from collections.abc import Iterator
from typing import Any, Self

from modelwright.cli.lines import Line


class Watched:
    """The same lines, and what is odd about those that were read.

    Args:
        lines: as `read_lines` gives them.
    """

    def __init__(self, lines: Iterator[Line]):
        self._lines = lines
        self._seen: dict[int, int] = {}
        self._repeated: tuple[int, int, Any] | None = None
        self._repeats = 0
        self._top_p: int | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Line:
        line = next(self._lines)
        own = line.id
        first = self._seen.setdefault(hash((type(own), own)), line.number)
        if first != line.number:
            self._repeats += 1
            self._repeated = self._repeated or (first, line.number, own)
        if self._top_p is None and '"top_p"' in line.text and _top_p_is_zero(line):
            self._top_p = line.number
        return line

    def told(self) -> Iterator[str]:
        """A sentence for each kind."""
        if self._repeated is not None:
            first, again, own = self._repeated
            more = f", and {self._repeats - 1} more lines repeat one" if self._repeats > 1 else ""
            yield f"lines {first} and {again} have the same id, {json.dumps(own, ensure_ascii=False):.80}{more}"
        if self._top_p is not None:
            yield f"line {self._top_p}: top_p 0 leaves the likeliest token alone, whatever the temperature"


def _top_p_is_zero(line: Line) -> bool:
    try:
        fields = json.loads(line.text)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and type(fields.get("top_p")) in (int, float) and fields["top_p"] == 0
