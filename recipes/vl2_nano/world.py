"""What pictures of the domain may show: kinds of shapes, and colours by name."""

from dataclasses import dataclass

from recipes.vl2_nano.palette import COLOURS

KINDS = ("circle", "square", "triangle", "star")


@dataclass(frozen=True)
class World:
    """The kinds and colours that shapes are drawn in, and that questions and denials speak of.

    A kind must be one that ``pictures`` can draw, a colour one of ``palette.SHADES``.
    """

    kinds: tuple[str, ...]
    colours: tuple[str, ...]


WORLD = World(KINDS, tuple(COLOURS))
"""The world of vl2-nano."""
