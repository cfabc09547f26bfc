"""The tags of an answer with boxes, read one after the other, as the answer grows or when it is whole."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

GRID = 999
"""The coordinate of a picture's right and bottom edge."""
TAG = re.compile(r"<\|(/?)(ref|det)\|>")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_NUMBER = re.compile(r"\s*[0-9]{1,3}\s*")

RawBox = tuple[int, int, int, int]
"""x1, y1, x2, y2, whole numbers 0..999 with x1 < x2 and y1 < y2."""


@dataclass(frozen=True)
class Skipped:
    """A stretch of the answer that is no grounding, and why."""

    text: str
    reason: str


@dataclass(frozen=True)
class Located:
    """A label, where it begins and ends in the text, and its boxes as the model wrote them."""

    label: str
    span: tuple[int, int]
    boxes: tuple[RawBox, ...]


@dataclass(frozen=True)
class _Opened:
    """A tag that is not yet closed: ``ref`` or ``det``, and where the text stood after it."""

    tag: str
    start: int
    body: list[str] = field(default_factory=list)


class GroundingReader:
    """Told of an answer's tags and of the words between them, in order, it says what they amount to.

    Positions are the caller's, who may count what it shows instead of all that the model wrote.
    """

    def __init__(self) -> None:
        self._label: tuple[str, tuple[int, int]] | None = None  # waits for boxes
        self._opened: _Opened | None = None
        self._found: list[Located | Skipped] = []

    @property
    def in_boxes(self) -> bool:
        """Whether what comes next stands between ``<|det|>`` and the next tag."""
        return self._opened is not None and self._opened.tag == "det"

    def words(self, text: str) -> None:
        """Text that is no tag."""
        if self._opened is not None:
            self._opened.body.append(text)

    def tag(self, written: str, start: int, end: int) -> None:
        """A tag, as `TAG` finds it, and where the text stands before and after it."""
        name = written.strip("<|>")
        if name in ("ref", "det"):
            self._drop_opened()
            self._opened = _Opened(name, end)
        elif self._opened is None or self._opened.tag != name[1:]:
            self._skip(written, f"it closes what <|{name[1:]}|> did not open")
            self.words(written)
        else:
            opened, self._opened = self._opened, None
            self._take_label(opened, start) if name == "/ref" else self._take_boxes("".join(opened.body))

    def finish(self) -> None:
        """No more text comes; boxes that are whole count although the answer was cut short."""
        if self.in_boxes and self._opened is not None:
            body, self._opened = "".join(self._opened.body), None
            self._skip(body, "<|det|> is not closed")
            self._take_boxes(body)
        else:
            self._drop_opened()
        self._drop_label()

    def take(self) -> list[Located | Skipped]:
        """What has become certain since the last time."""
        found, self._found = self._found, []
        return found

    def _take_label(self, opened: _Opened, end: int) -> None:
        self._drop_label()
        body = "".join(opened.body)
        before, after = len(body) - len(body.lstrip()), len(body) - len(body.rstrip())
        self._label = body.strip(), (opened.start + before, end - after)

    def _take_boxes(self, body: str) -> None:
        boxes: list[RawBox] = []
        brackets = list(_BRACKETS.finditer(body))
        for match in brackets:
            box = read_box(match[1])
            if isinstance(box, str):
                self._skip(match[0], box)
            else:
                boxes.append(box)
        label, self._label = self._label, None
        if not brackets:
            self._skip(body, "it holds no box")
        elif boxes and label is not None and label[0]:
            self._found.append(Located(*label, tuple(boxes)))
        elif boxes:
            self._skip(body, "the boxes have no label")

    def _drop_opened(self) -> None:
        if self._opened is not None:
            self._skip("".join(self._opened.body), f"<|{self._opened.tag}|> is not closed")
            self._opened = None

    def _drop_label(self) -> None:
        if self._label is not None:
            self._skip(self._label[0], "the label has no boxes")
            self._label = None

    def _skip(self, text: str, reason: str) -> None:
        self._found.append(Skipped(text, reason))


def read_box(body: str) -> RawBox | str:
    """The box between two brackets, or what is wrong with it; text is never evaluated."""
    numbers = body.split(",")
    if len(numbers) != 4 or not all(_NUMBER.fullmatch(number) for number in numbers):
        return f"a box must be four whole numbers from 0 to {GRID}"
    x1, y1, x2, y2 = (int(number) for number in numbers)
    return box_problem((x1, y1, x2, y2)) or (x1, y1, x2, y2)


def box_problem(box: Sequence[float]) -> str | None:
    """What is wrong with four numbers as a box, None where nothing is."""
    if len(box) != 4 or any(value != int(value) or not 0 <= value <= GRID for value in box):
        return f"a box must be four whole numbers from 0 to {GRID}"
    if box[0] >= box[2] or box[1] >= box[3]:
        return "x1 must be less than x2, and y1 less than y2"
    return None
