"""Whether an answer states the same fact as the expected one, however it is worded; no model and no pictures."""

import re
from collections import Counter

_COLOUR = r"red|green|blue|yellow|purple|orange|black|pink"
_KIND = r"circle|square|triangle|star|heart"
_NUMBERS = {"no": 0, "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
            "nine": 9, "ten": 10}  # fmt: skip
_DENIALS = re.compile(r"\b(no|not|none|nothing|neither|zero|0|isn't|aren't)\b")
_EMPTY = re.compile(r"\b(nothing|none|no (other )?(objects?|shapes?))\b")
_BOX = re.compile(r"\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]")

Box = tuple[int, int, int, int]


def judge(fact: str, expected: str, answer: str) -> bool:
    """Whether ``answer`` is right.

    ``fact`` says what counts: "colour" and "shape" the set of such words, "count" the first number, "text" the last
    run of digits and capitals, "boxes" as many boxes as expected, each with its own at IoU >= 0.5, "denial"
    that it says no and shows no box, "objects" which coloured shapes and how many of each, "image" which of two
    pictures, "yes" whether it begins so.
    """
    if fact == "text":
        return _text(answer) == _text(expected)
    if fact == "boxes":
        return same_boxes(boxes(expected), boxes(answer))
    if fact == "denial":
        return bool(_DENIALS.search(answer.lower())) and not boxes(answer)
    if fact == "objects" and _EMPTY.search(expected.lower()):
        return bool(_EMPTY.search(answer.lower()))
    reading = {"colour": _colours, "shape": _kinds, "count": _number, "objects": _objects, "image": _image, "yes": _yes}
    return reading[fact](answer.lower()) == reading[fact](expected.lower())


def boxes(answer: str) -> list[Box]:
    """Every ``[x1, y1, x2, y2]`` in the answer."""
    return [(int(a), int(b), int(c), int(d)) for a, b, c, d in _BOX.findall(answer)]


def iou(a: Box, b: Box) -> float:
    """Area of the overlap over the area of the union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def same_boxes(expected: list[Box], found: list[Box], threshold: float = 0.5) -> bool:
    """Whether each expected box has a found one of its own with at least ``threshold`` IoU, and none is left over."""
    rest = list(found)
    for box in expected:
        best = max(rest, key=lambda other: iou(box, other), default=None)
        if best is None or iou(box, best) < threshold:
            return False
        rest.remove(best)
    return not rest


def _text(answer: str) -> str | None:
    """The last run of digits and capitals; "I" and "A" before a word in small letters are English, and no reading."""
    return next(iter(re.findall(r"\b(?![AI] [a-z])[0-9A-Z]+\b", answer)[::-1]), None)


def _colours(answer: str) -> set[str]:
    return set(re.findall(rf"\b({_COLOUR})\b", answer))


def _kinds(answer: str) -> set[str]:
    return set(re.findall(rf"\b({_KIND})s?\b", answer))


def _number(answer: str) -> int | None:
    found = re.search(rf"\b(\d+|{'|'.join(_NUMBERS)})\b", answer)
    if found is None:
        return None
    return int(found[1]) if found[1].isdigit() else _NUMBERS[found[1]]


def _objects(answer: str) -> Counter[tuple[str, str]]:
    counted: Counter[tuple[str, str]] = Counter()
    for many, colour, kind in re.findall(rf"(?:\b(\d+|{'|'.join(_NUMBERS)})\s+)?\b({_COLOUR})\s+({_KIND})s?\b", answer):
        counted[colour, kind] += int(many) if many.isdigit() else _NUMBERS.get(many, 1)
    return counted


def _image(answer: str) -> set[str]:
    words = set(re.findall(r"\b(first|second|both|neither|same)\b", answer))
    return {"same"} if "same" in words else words


def _yes(answer: str) -> bool:
    return answer.lstrip().startswith("yes")
