"""The boxes in a model's answer, parsed and printed; drawing is in `drawing`, constraining in `box_grammar`.

A model writes ``<|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>`` with coordinates 0..999 across the picture
(DeepSeek-VL2 paper, section 3). What it writes is never evaluated: whatever is not a box is skipped and reported.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import cast

from modelwright.errors import RequestError
from modelwright.processing.images import Picture, load_image

GRID = 999
"""The coordinate of a picture's right and bottom edge."""

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2."""
Shown = tuple[int, int] | Picture
"""A picture that the model saw, as `load_image` reads it, or the (width, height) of it, upright."""

_TAG = re.compile(r"<\|(/?)(ref|det)\|>")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_NUMBER = re.compile(r"\s*[0-9]{1,3}\s*")


@dataclass(frozen=True)
class Grounding:
    """One thing the model points at.

    Attributes:
        label: what it calls it.
        boxes: x1, y1, x2, y2 in pixels of the upright picture, x1 < x2 and y1 < y2.
        image: which picture of the conversation.
    """

    label: str
    boxes: tuple[Box, ...]
    image: int = 0


@dataclass(frozen=True)
class Skipped:
    """A stretch of the answer that is no grounding, and why."""

    text: str
    reason: str


@dataclass(frozen=True)
class GroundingReport:
    groundings: list[Grounding]
    skipped: list[Skipped]


def parse_grounding(text: str, image_size: Shown | Sequence[Shown], image: int | None = None) -> list[Grounding]:
    """The well-formed groundings of an answer, in pixels; see `parse_grounding_report`."""
    return parse_grounding_report(text, image_size, image).groundings


def parse_grounding_report(text: str, image_size: Shown | Sequence[Shown], image: int | None = None) -> GroundingReport:
    """The groundings of an answer and everything that looked like one and was not.

    A box is four whole numbers 0..999 with x1 < x2 and y1 < y2; one bad box does not spoil its neighbours.

    Args:
        image_size: the picture, or its (width, height) in pixels when it stands upright; or one such for each picture
            of the conversation. A picture as a camera stores it may lie on its side: hand over the picture, whose EXIF
            orientation is applied, rather than its ``size``.
        image: which picture the boxes lie on; the last one by default, because the answer does not say.

    Raises:
        RequestError: sizes that are not positive, or an ``image`` there is no size for. No answer raises.
    """
    index, size = _pick_size(image_size, image)
    reader = _Reader()
    for tag in _TAG.finditer(text):
        reader.read(tag[1] + tag[2], text, tag.start(), tag.end())
    reader.finish(text)
    groundings = [
        Grounding(label, tuple(to_pixels(box, size) for box in boxes), index) for label, boxes in reader.found
    ]
    return GroundingReport(groundings, reader.skipped)


def to_pixels(box: Sequence[int], size: tuple[int, int]) -> Box:
    """0..999 to pixels of a picture of ``size`` (width, height)."""
    x1, y1, x2, y2 = box
    width, height = size
    return x1 / GRID * width, y1 / GRID * height, x2 / GRID * width, y2 / GRID * height


def format_grounding(label: str, boxes: Iterable[Sequence[int]]) -> str:
    """What a model should write for boxes given in 0..999; `parse_grounding` reads it back.

    Raises:
        RequestError: a label that is empty or holds a grounding tag, no box, or a box that breaks the rule.
    """
    boxes = [tuple(box) for box in boxes]
    if not label.strip() or _TAG.search(label):
        raise RequestError(f"a label must be words without grounding tags, got {label!r}")
    if not boxes:
        raise RequestError(f"{label!r} has no box")
    for box in boxes:
        problem = _box_problem(box)
        if problem:
            raise RequestError(f"the box {list(box)} of {label!r}: {problem}")
    listed = ", ".join("[" + ", ".join(str(int(value)) for value in box) + "]" for box in boxes)
    return f"<|ref|>{label}<|/ref|><|det|>[{listed}]<|/det|>"


@dataclass
class _Reader:
    """Walks over the tags of an answer; ``label`` waits for boxes, ``opened`` is the tag not yet closed and its end."""

    found: list[tuple[str, list[tuple[int, ...]]]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    label: str | None = None
    opened: tuple[str, int] | None = None

    def read(self, tag: str, text: str, start: int, end: int) -> None:
        if tag in ("ref", "det"):
            self._drop_opened(text, start)
            self.opened = (tag, end)
        elif self.opened is None or self.opened[0] != tag[1:]:
            self.skipped.append(Skipped(text[start:end], f"it closes what <|{tag[1:]}|> did not open"))
        else:
            body, self.opened = text[self.opened[1] : start], None
            self._take_label(body) if tag == "/ref" else self._take_boxes(body)

    def finish(self, text: str) -> None:
        if self.opened is not None and self.opened[0] == "det":  # cut short: the boxes that are whole still count
            self.skipped.append(Skipped(text[self.opened[1] :], "<|det|> is not closed"))
            self._take_boxes(text[self.opened[1] :])
        else:
            self._drop_opened(text, len(text))
        self._drop_label()

    def _take_label(self, body: str) -> None:
        self._drop_label()
        self.label = body.strip()

    def _take_boxes(self, body: str) -> None:
        boxes: list[tuple[int, ...]] = []
        for match in _BRACKETS.finditer(body):
            box = _read_box(match[1])
            if isinstance(box, str):
                self.skipped.append(Skipped(match[0], box))
            else:
                boxes.append(box)
        if not _BRACKETS.search(body):
            self.skipped.append(Skipped(body, "it holds no box"))
        if boxes and not self.label:
            self.skipped.append(Skipped(body, "the boxes have no label"))
        elif boxes and self.label:
            self.found.append((self.label, boxes))
        self.label = None

    def _drop_opened(self, text: str, end: int) -> None:
        if self.opened is not None:
            self.skipped.append(Skipped(text[self.opened[1] : end], f"<|{self.opened[0]}|> is not closed"))
            self.opened = None

    def _drop_label(self) -> None:
        if self.label is not None:
            self.skipped.append(Skipped(self.label, "the label has no boxes"))
            self.label = None


def _read_box(body: str) -> tuple[int, ...] | str:
    """The box between two brackets, or what is wrong with it."""
    numbers = body.split(",")
    if len(numbers) != 4 or not all(_NUMBER.fullmatch(number) for number in numbers):
        return f"a box must be four whole numbers from 0 to {GRID}"
    box = tuple(int(number) for number in numbers)
    return _box_problem(box) or box


def _box_problem(box: Sequence[float]) -> str | None:
    if len(box) != 4 or any(value != int(value) or not 0 <= value <= GRID for value in box):
        return f"a box must be four whole numbers from 0 to {GRID}"
    if box[0] >= box[2] or box[1] >= box[3]:
        return "x1 must be less than x2, and y1 less than y2"
    return None


def _pick_size(image_size: Shown | Sequence[Shown], image: int | None) -> tuple[int, tuple[int, int]]:
    pair = isinstance(image_size, tuple | list) and len(image_size) > 0 and isinstance(image_size[0], Number)
    several = isinstance(image_size, tuple | list) and not pair
    shown = cast(list[Shown], [*cast(Sequence[Shown], image_size)] if several else [image_size])
    sizes = [one if isinstance(one, list | tuple) else load_image(one).size for one in shown]
    if not sizes or any(len(size) != 2 or min(size) <= 0 for size in sizes):
        raise RequestError(
            f"image_size must be (width, height) or a list of such pairs, all positive, got {image_size}"
        )
    index = len(sizes) - 1 if image is None else image
    if not 0 <= index < len(sizes):
        raise RequestError(f"image is {index}, but there are {len(sizes)} image sizes")
    width, height = sizes[index]
    return index, (width, height)
