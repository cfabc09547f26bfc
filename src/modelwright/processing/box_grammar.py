"""What may follow ``<|det|>``, character by character; pure text, and no tokens: those are in `box_constraint`.

    boxes = "[" box ("," [" "] box)* "]"
    box   = "[" x1 "," [" "] y1 "," [" "] x2 "," [" "] y2 "]"

with whole numbers 0..999 without leading zeros, x1 < x2 and y1 < y2.
"""

from dataclasses import dataclass, replace
from typing import Literal

from modelwright.processing.grounding_reader import GRID

DET_CLOSE = "<|/det|>"
ALPHABET = "[], 0123456789"
_MAX_DIGITS = len(str(GRID))


@dataclass(frozen=True)
class BoxState:
    """Where in the grammar a text ends.

    Attributes:
        place: what comes next: the outer bracket, a box, a number, more of a number, what follows a box, nothing.
        numbers: the finished numbers of the current box.
        digits: of the number being written.
        may_space: a space is allowed before what comes next.
        boxes: how many boxes are finished.
    """

    place: Literal["list", "box", "number", "digits", "after box", "done"] = "list"
    numbers: tuple[int, ...] = ()
    digits: str = ""
    may_space: bool = False
    boxes: int = 0


@dataclass(frozen=True)
class BoxGrammar:
    """Decides which texts can still become a list of at most ``max_boxes`` well-formed boxes."""

    max_boxes: int = 100

    def advance(self, state: BoxState | None, text: str) -> BoxState | None:
        """The state after ``text``, None when it leaves the grammar."""
        for character in text:
            if state is None:
                return None
            state = self._step(state, character)
        return state

    def is_prefix(self, text: str) -> bool:
        """Whether ``text``, what follows ``<|det|>`` so far, can be continued to well-formed boxes."""
        return self.advance(BoxState(), text) is not None

    def is_complete(self, text: str) -> bool:
        """Whether ``text`` is a whole list of boxes, after which only ``<|/det|>`` may come."""
        state = self.advance(BoxState(), text)
        return state is not None and state.place == "done"

    def allowed_next(self, text: str) -> set[str]:
        """The characters that may follow ``text``; ``{"<|/det|>"}`` when it is complete, nothing when it is wrong."""
        state = self.advance(BoxState(), text)
        if state is None:
            return set()
        if state.place == "done":
            return {DET_CLOSE}
        return {character for character in ALPHABET if self._step(state, character) is not None}

    def _step(self, state: BoxState, character: str) -> BoxState | None:
        if character == " ":
            return replace(state, may_space=False) if state.may_space else None
        if character in "0123456789":
            return _write_digit(state, character)
        if character == "[":
            opened = {"list": "box", "box": "number"}.get(state.place)
            return replace(state, place=opened, may_space=False) if opened else None
        if character == ",":
            return self._comma(state)
        return _close(state) if character == "]" else None

    def _comma(self, state: BoxState) -> BoxState | None:
        if state.place == "digits" and len(state.numbers) < 3 and _number_ends(state):
            numbers = (*state.numbers, int(state.digits))
            return BoxState("number", numbers, may_space=True, boxes=state.boxes)
        if state.place == "after box" and state.boxes < self.max_boxes:
            return BoxState("box", may_space=True, boxes=state.boxes)
        return None


def _close(state: BoxState) -> BoxState | None:
    if state.place == "digits" and len(state.numbers) == 3 and _number_ends(state):
        return BoxState("after box", boxes=state.boxes + 1)
    return BoxState("done", boxes=state.boxes) if state.place == "after box" else None


def _write_digit(state: BoxState, digit: str) -> BoxState | None:
    digits = state.digits + digit
    if state.place not in ("number", "digits") or len(digits) > _MAX_DIGITS or (len(digits) > 1 and digits[0] == "0"):
        return None
    longest = 0 if digits == "0" else _MAX_DIGITS - len(digits)
    low, high = _bounds(state.numbers)
    reachable = any(
        int(digits) * 10**more <= high and (int(digits) + 1) * 10**more - 1 >= low for more in range(longest + 1)
    )
    return BoxState("digits", state.numbers, digits, boxes=state.boxes) if reachable else None


def _number_ends(state: BoxState) -> bool:
    low, high = _bounds(state.numbers)
    return low <= int(state.digits) <= high


def _bounds(numbers: tuple[int, ...]) -> tuple[int, int]:
    """What the next number of a box may be: the first corner leaves room for the second."""
    return (0, GRID - 1) if len(numbers) < 2 else (numbers[len(numbers) - 2] + 1, GRID)
