"""What becomes of an answer's text on its way to the client: pieces of text, calls of tools, boxes.

Readers stand in a row. Each takes text as it grows, keeps back what may still become something else, and gives events;
the text among them goes on to the next reader. A streamed answer is these events as they come, and an answer in one
piece is the same events joined, so that both say the same.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec


class Text(msgspec.Struct, frozen=True):
    """A piece of the answer's content."""

    text: str


class Reasoning(msgspec.Struct, frozen=True):
    """A piece of what the model thought before it answered."""

    text: str


class CallStart(msgspec.Struct, frozen=True):
    """A tool is called: its name is certain, its arguments follow. `index` counts the calls of the answer."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """A piece of the JSON text of a call's arguments."""

    index: int
    text: str


class Grounded(msgspec.Struct, frozen=True):
    """A box that the model drew.

    Attributes:
        label: what it calls it.
        picture: which picture of the request, from 0.
        box: x1, y1, x2, y2 as the request asked for them.
        raw: the same as the model wrote it, 0 to 999 across the picture.
        span: where its label stands in the content, in characters: start, end.
    """

    label: str
    picture: int
    box: tuple[float, float, float, float]
    raw: tuple[int, int, int, int]
    span: tuple[int, int]


class NotGrounded(msgspec.Struct, frozen=True):
    """A stretch that looks like a box and is none, and why."""

    text: str
    reason: str


Event = Text | Reasoning | CallStart | CallArguments | Grounded | NotGrounded


class Reader(Protocol):
    """One of the row; an answer that is cut short is finished too."""

    def push(self, text: str) -> Sequence[Event]:
        """What a further piece of text makes certain."""
        ...

    def finish(self) -> Sequence[Event]:
        """What was kept back, once no more text comes."""
        ...


class Row:
    """Readers one after the other."""

    def __init__(self, readers: Iterable[Reader]):
        self._readers = list(readers)

    def push(self, text: str) -> list[Event]:
        return self._through(0, [Text(text)] if text else [])

    def finish(self) -> list[Event]:
        events: list[Event] = []
        for number, reader in enumerate(self._readers):
            events += self._through(number + 1, list(reader.finish()))
        return events

    def _through(self, start: int, events: list[Event]) -> list[Event]:
        for reader in self._readers[start:]:
            passed: list[Event] = []
            for event in events:
                passed += reader.push(event.text) if isinstance(event, Text) else [event]
            events = passed
        return events
