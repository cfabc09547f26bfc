"""The boxes in a model's answer, parsed and printed; drawing is in `drawing`, constraining in `box_grammar`.

A model writes ``<|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>`` with coordinates 0..999 across the picture
(DeepSeek-VL2 paper, section 3). What it writes is never evaluated: whatever is not a box is skipped and reported.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import cast

from modelwright.errors import RequestError
from modelwright.processing.grounding_reader import GRID, TAG, GroundingReader, Located, Skipped, box_problem
from modelwright.processing.images import Picture, load_image

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2."""
Shown = tuple[int, int] | Picture
"""A picture that the model saw, as `load_image` reads it, or the (width, height) of it, upright."""


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
    reader, read = GroundingReader(), 0
    for tag in TAG.finditer(text):
        reader.words(text[read : tag.start()])
        reader.tag(tag[0], tag.start(), tag.end())
        read = tag.end()
    reader.words(text[read:])
    reader.finish()
    found = reader.take()
    groundings = [
        Grounding(each.label, tuple(to_pixels(box, size) for box in each.boxes), index)
        for each in found
        if isinstance(each, Located)
    ]
    return GroundingReport(groundings, [each for each in found if isinstance(each, Skipped)])


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
    if not label.strip() or TAG.search(label):
        raise RequestError(f"a label must be words without grounding tags, got {label!r}")
    if not boxes:
        raise RequestError(f"{label!r} has no box")
    for box in boxes:
        problem = box_problem(box)
        if problem:
            raise RequestError(f"the box {list(box)} of {label!r}: {problem}")
    listed = ", ".join("[" + ", ".join(str(int(value)) for value in box) + "]" for box in boxes)
    return f"<|ref|>{label}<|/ref|><|det|>[{listed}]<|/det|>"


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
