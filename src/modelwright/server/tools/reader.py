"""`CallReader`: calls of tools found in the text of an answer as it grows, by the same parts that drew them."""

import re
import secrets
import string
from collections.abc import Callable, Collection, Sequence

from modelwright.server.events import CallArguments, CallStart, Event, Text
from modelwright.server.tools.dialects import Dialect, Part, Space
from modelwright.server.tools.grammar import pattern_of

_LETTERS = string.ascii_letters + string.digits
_NAME = "[A-Za-z0-9_-]{1,64}"


def new_call_id() -> str:
    """``call_`` and 22 letters and digits by chance."""
    return "call_" + "".join(secrets.choice(_LETTERS) for _ in range(22))


class CallReader:
    """A `Reader` of one answer. The events of any pieces of a text, joined, are those of the whole.

    A call begins where its name is certain and only its arguments can follow. What looks like a call and is none,
    or of a tool that is not there, is text. White space before the first call is left out where nothing else stands
    before it, and so are the signs around calls.

    Args:
        names: of the tools that may be called.
    """

    def __init__(self, dialect: Dialect, names: Collection[str], new_id: Callable[[], str] = new_call_id):
        self._names, self._new_id = frozenset(names), new_id
        self._first = _Pattern((*dialect.first, None, *dialect.middle))
        self._next = _Pattern((*dialect.next, None, *dialect.middle))
        self._last = _Pattern(dialect.last)
        self._held = ""
        self._wrote = False  # any text
        self._calls = 0
        self._step: Callable[[bool], list[Event] | None] = self._find_first
        self._arguments = _Braces()

    def push(self, text: str) -> Sequence[Event]:
        self._held += text
        return self._read(ended=False)

    def finish(self) -> Sequence[Event]:
        return self._read(ended=True)

    def _read(self, ended: bool) -> list[Event]:
        events: list[Event] = []
        while (found := self._step(ended)) is not None:
            events += found
        return events

    def _find_first(self, ended: bool) -> list[Event] | None:
        """Text before any call; None where more is needed to go on."""
        start = 0
        while (match := self._first.whole.search(self._held, start)) is not None:
            if match["name"] in self._names:
                return self._begin(self._held[: match.start()], match)
            start = match.start() + 1
        partial = None if ended else self._first.partial.search(self._held, start)
        keep = len(self._held) if partial is None else partial.start()
        if not ended and not self._wrote and not self._held[:keep].strip():
            return None  # white space, and a call may follow
        return self._write(keep) or None

    def _find_next(self, ended: bool) -> list[Event] | None:
        """What follows the arguments of a call."""
        match = self._next.whole.match(self._held)
        if match is not None and match["name"] in self._names:
            return self._begin("", match)
        signs = self._next.partial.match(self._held) or self._last.partial.match(self._held)
        if signs is not None and not ended:
            return None
        match = signs or self._last.whole.match(self._held)  # those that were cut, or all that belong there
        self._held = self._held[match.end() if match else 0 :]
        self._wrote, self._step = True, self._find_first
        return []

    def _read_arguments(self, ended: bool) -> list[Event] | None:
        size = self._arguments.read(self._held)
        piece, self._held = self._held[:size], self._held[size:]
        if self._arguments.closed:
            self._step = self._find_next
            return [CallArguments(self._calls - 1, piece)]
        return [CallArguments(self._calls - 1, piece)] if piece else None

    def _begin(self, before: str, match: re.Match[str]) -> list[Event]:
        events = self._write(len(before)) if before.strip() or self._wrote else []
        self._held = match.string[match.end() :]
        self._arguments, self._step = _Braces(), self._read_arguments
        self._calls += 1
        return [*events, CallStart(self._calls - 1, self._new_id(), match["name"])]

    def _write(self, size: int) -> list[Event]:
        text, self._held = self._held[:size], self._held[size:]
        self._wrote = self._wrote or bool(text)
        return [Text(text)] if text else []


class _Braces:
    """Finds the end of an object in JSON."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = self._escaped = False
        self.closed = False

    def read(self, text: str) -> int:
        """How many of the characters belong to it."""
        for place, each in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped, self._in_text = each == "\\", each != '"'
            elif each == '"':
                self._in_text = True
            elif each in "{[":
                self._depth += 1
            elif each in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.closed = True
                    return place + 1
        return len(text)


class _Pattern:
    """Parts as an expression, and what may be the beginning of them at the end of a text; None stands for a name.

    Arguments follow a name, so that what has one ends before a brace.
    """

    def __init__(self, parts: Sequence[Part | None]):
        atoms = [atom for part in parts for atom in _atoms(part)]
        named = None in parts
        self.whole = re.compile("".join(atoms).replace(_NAME, f"(?P<name>{_NAME})") + ("(?={)" if named else ""))
        nested = ""
        for atom in reversed(atoms):
            nested = f"(?:{atom}{nested})?" if nested else f"(?:{atom})?"
        self.partial = re.compile(nested[:-1] + r"\Z" if atoms else r"\Z")


def _atoms(part: Part | None) -> list[str]:
    if part is None:
        return [_NAME]
    return [pattern_of(part)] if isinstance(part, Space) else [pattern_of(each) for each in part]
