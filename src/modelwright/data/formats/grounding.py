"""ms-swift's ``objects``: names and boxes beside a conversation, written into it as DeepSeek-VL2 writes them.

``<ref-object>`` in a message stands for the next name and ``<bbox>`` for the next box, in order over all messages;
boxes that follow each other without a word between them share one pair of tags. Source: ms-swift's documentation of
custom data sets, section Grounding.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from modelwright.data.examples import PictureRef
from modelwright.data.formats.fields import broken, items, shown, words
from modelwright.data.formats.pictures import upright_size
from modelwright.data.rows import Row
from modelwright.processing.grounding import GRID, box_problem
from modelwright.processing.grounding_reader import TAG

NAME, BOX = "<ref-object>", "<bbox>"
_PLACES = re.compile(rf"{NAME}|{BOX}(?:\s*{BOX})*")
BOX_TYPES = ("real", "norm1")
"""Pixels of the upright picture, and shares of its width and height."""


class Objects:
    """The names and boxes of one row, handed out in order.

    Raises:
        BrokenRow: what is given is none, or a box does not fit its picture.
    """

    def __init__(self, row: Row, given: Any, pictures: Sequence[PictureRef]):
        self._row = row
        if not isinstance(given, Mapping):
            raise broken(row, f"objects must be a mapping with 'ref' and 'bbox', got {shown(given)}")
        names = items(row, "objects.ref", given.get("ref") if given.get("ref") is not None else [])
        self._names = [_checked_name(row, name) for name in names]
        boxes = items(row, "objects.bbox", given.get("bbox") if given.get("bbox") is not None else [])
        self._boxes = list(_written_boxes(row, given, boxes, pictures))
        self._used = [0, 0]

    def fill(self, text: str) -> str:
        """`text` with its places filled."""
        return _PLACES.sub(self._written, text)

    def finish(self) -> None:
        """Refuse a row that has more names or boxes than its messages have places."""
        for place, used, given in ((NAME, self._used[0], self._names), (BOX, self._used[1], self._boxes)):
            if used != len(given):
                raise broken(self._row, f"its messages hold {used} {place}, and its objects {len(given)} of them")

    def _written(self, place: re.Match[str]) -> str:
        if place[0] == NAME:
            return f"<|ref|>{self._next(0, NAME, self._names)}<|/ref|>"
        boxes = [self._next(1, BOX, self._boxes) for _ in range(place[0].count(BOX))]
        return f"<|det|>[{', '.join(boxes)}]<|/det|>"

    def _next(self, kind: int, place: str, given: Sequence[str]) -> str:
        if self._used[kind] >= len(given):
            raise broken(self._row, f"its messages hold more {place} than its objects, which are {len(given)}")
        self._used[kind] += 1
        return given[self._used[kind] - 1]


def _checked_name(row: Row, name: Any) -> str:
    if not words(row, "a name of objects.ref", name).strip() or TAG.search(name):
        raise broken(row, f"a name of objects.ref must be words without grounding tags, got {shown(name)}")
    return name


def _written_boxes(row: Row, given: Mapping[str, Any], boxes: list[Any], pictures: Sequence[PictureRef]) -> Any:
    kind = given.get("bbox_type") or "real"
    if kind not in BOX_TYPES:
        raise broken(row, f"objects.bbox_type must be one of {', '.join(BOX_TYPES)}, got {shown(kind)}")
    of_picture = items(row, "objects.image_id", given.get("image_id") or [])
    if of_picture and len(of_picture) != len(boxes):
        raise broken(row, f"objects.image_id has {len(of_picture)} entries, and objects.bbox {len(boxes)}")
    sizes: dict[int, tuple[float, float]] = {}
    for number, box in enumerate(boxes):
        picture = of_picture[number] if of_picture else 0
        if kind == "norm1":
            size = 1.0, 1.0
        else:
            if type(picture) is not int or not 0 <= picture < len(pictures):
                raise broken(row, f"objects.image_id names picture {shown(picture)}, and there are {len(pictures)}")
            if picture not in sizes:
                sizes[picture] = upright_size(row, pictures[picture])
            size = sizes[picture]
        yield _on_grid(row, items(row, "a box of objects.bbox", box), size)


def _on_grid(row: Row, box: list[Any], size: tuple[float, float]) -> str:
    """A box in 0..999, the inverse of `processing.grounding.to_pixels`, as the model writes it."""
    numbers = [value for value in box if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(box) != 4 or len(numbers) != 4:
        raise broken(row, f"a box must be the four numbers x1, y1, x2, y2, got {shown(box)}")
    outside = [value for value, side in zip(numbers, size * 2, strict=True) if not 0 <= value <= side]
    if outside:
        raise broken(row, f"the box {shown(box)} lies outside of its picture, which is {size[0]:g} x {size[1]:g}")
    placed = [round(value * GRID / side) for value, side in zip(numbers, size * 2, strict=True)]
    problem = box_problem(placed)
    if problem:
        raise broken(row, f"the box {shown(box)} is {placed} in 0..{GRID}: {problem}")
    return f"[{', '.join(map(str, placed))}]"
