"""The field ``grounding`` of a chat request: how boxes are asked for, and in which form they are answered."""

from typing import Literal

import msgspec

from modelwright.processing.grounding_reader import TAG

MAX_NAMES = 16
"""Things that one request may ask the place of."""
LONGEST_NAME = 256
"""Characters of such a thing's name."""
MARK = "<|grounding|>"
"""Begins a question that is answered with boxes."""


class GroundingOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is asked of boxes; no other name is taken.

    Attributes:
        parse: whether boxes come as ``groundings`` beside the text.
        coordinates: pixels of the picture as sent; normalized, 0 to 1 across it; raw, 0 to 999 as the model writes.
        text: tags leaves the text as the model wrote it; plain takes the tags and the coordinates out of it.
        constrain: let the model write nothing but well-formed boxes between its tags.
        locate: names of things to be found, asked for in the form that the model was trained on.
    """

    parse: bool = True
    coordinates: Literal["pixels", "normalized", "raw"] = "pixels"
    text: Literal["tags", "plain"] = "tags"
    constrain: bool = False
    locate: list[str] = []

    def __post_init__(self) -> None:
        if len(self.locate) > MAX_NAMES:
            raise ValueError(f"locate may hold at most {MAX_NAMES} names, got {len(self.locate)}")
        for name in self.locate:
            if not name.strip() or len(name) > LONGEST_NAME or TAG.search(name) or MARK in name:
                raise ValueError(
                    f"locate must hold words, at most {LONGEST_NAME} characters and none of the grounding tags, "
                    f"got {name[:40]!r} ({len(name)} characters)"
                )
