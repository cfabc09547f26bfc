"""The boxes of an answer as it grows: found, put into the coordinates asked for, and taken out of the text on wish."""

import re
from collections.abc import Sequence

from modelwright.processing.grounding import to_pixels
from modelwright.processing.grounding_reader import GRID, GroundingReader, Located, RawBox, Skipped
from modelwright.server.events import Event, Grounded, NotGrounded, Text
from modelwright.server.wire.grounding import MARK, GroundingOptions

_TAGS = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", MARK)
_ANY_TAG = re.compile("|".join(map(re.escape, _TAGS)))
_LONGEST = max(map(len, _TAGS))


class BoxReader:
    """One of the row of readers, for one answer.

    With ``text: tags`` the text passes at once and unchanged, and boxes follow the tag that closes them. With ``text:
    plain`` neither tags nor what stands between ``<|det|>`` and the next tag is shown, and what may yet become a tag is
    kept back. Boxes lie on the last picture of the prompt, because the answer does not say on which; what is no box
    is told with its reason, as `processing.parse_grounding_report` tells it.

    Args:
        request: what is asked of boxes.
        sizes: (width, height) in pixels of each picture of the request, upright, in order.
        last: which of them the prompt shows last; the last, where that is left out.
    """

    def __init__(self, request: GroundingOptions, sizes: Sequence[tuple[int, int]], last: int | None = None):
        self._request, self._sizes = request, sizes
        self._picture = len(sizes) - 1 if last is None else last
        self._plain = request.text == "plain"
        self._reader = GroundingReader()
        self._pending = ""  # what may yet become a tag
        self._sent = 0  # how many characters of that are shown already
        self._position = 0  # in the content
        self._events: list[Event] = []

    def push(self, text: str) -> Sequence[Event]:
        """The text that is certain, and the boxes that it closes."""
        written, read = self._pending + text, 0
        for tag in _ANY_TAG.finditer(written):
            self._words(written[read : tag.start()])
            self._tag(tag[0])
            read = tag.end()
        kept = _beginning_of_a_tag(written[read:])
        self._words(written[read : len(written) - kept])
        self._pending = written[len(written) - kept :]
        if not self._plain:
            self._show(self._pending[self._sent :])
            self._sent = kept
        return self._take()

    def finish(self) -> Sequence[Event]:
        """What was kept back turns out to be text; boxes that are whole count although nothing closes them."""
        self._words(self._pending)
        self._pending = ""
        self._reader.finish()
        self._report()
        return self._take()

    def _words(self, text: str) -> None:
        self._reader.words(text)
        if not (self._plain and self._reader.in_boxes):
            self._show(text[self._sent :])
            self._position += len(text)
        self._sent = max(0, self._sent - len(text))

    def _tag(self, tag: str) -> None:
        start = self._position
        if not self._plain:
            self._show(tag[self._sent :])
            self._position += len(tag)
        self._sent = 0
        if tag == MARK:
            self._reader.words(tag)
        else:
            self._reader.tag(tag, start, self._position)
            self._report()

    def _show(self, text: str) -> None:
        if not text:
            return
        last = self._events[-1] if self._events else None
        if isinstance(last, Text):
            self._events[-1] = Text(last.text + text)
        else:
            self._events.append(Text(text))

    def _report(self) -> None:
        for found in self._reader.take():
            if not self._request.parse:
                continue
            if isinstance(found, Skipped):
                self._events.append(NotGrounded(found.text, found.reason))
            elif not self._sizes:
                self._events.append(NotGrounded(found.label, "the request shows no picture that a box could lie on"))
            else:
                self._events += [self._grounded(found, box) for box in found.boxes]

    def _grounded(self, found: Located, raw: RawBox) -> Grounded:
        picture = self._picture
        x1, y1, x2, y2 = raw
        box = {
            "pixels": to_pixels(raw, self._sizes[picture]),
            "normalized": (x1 / GRID, y1 / GRID, x2 / GRID, y2 / GRID),
            "raw": (float(x1), float(y1), float(x2), float(y2)),
        }[self._request.coordinates]
        return Grounded(found.label, picture, box, raw, found.span)

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def locate_text(names: Sequence[str]) -> str:
    """The question for the places of things, in the form that the models were trained on."""
    tagged = [f"<|ref|>{name.strip()}<|/ref|>" for name in names]
    listed = " and ".join([", ".join(tagged[:-1]), tagged[-1]] if len(tagged) > 1 else tagged)
    return f"{MARK}Locate {listed}."


def _beginning_of_a_tag(text: str) -> int:
    """How many characters at the end of a text without tags may be the beginning of one."""
    start = text.rfind("<", max(0, len(text) - _LONGEST + 1))
    tail = text[start:] if start >= 0 else ""
    return len(tail) if tail and any(tag.startswith(tail) for tag in _TAGS) else 0
