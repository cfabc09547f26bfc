"""What can be said of a picture: which shapes a phrase names, where they are, and the fixed forms of the answers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np

from recipes.vl2_nano.palette import pick, weighted
from recipes.vl2_nano.pictures import Box, Card, Scene, Shape
from recipes.vl2_nano.world import WORLD, World

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five")


class Turn(NamedTuple):
    """One question, without the picture placeholders before it, and its answer."""

    question: str
    answer: str


Dialogue = tuple[Turn, ...]


@dataclass(frozen=True)
class Asked:
    """A conversation and which fact of its last answer counts (see ``judge``)."""

    turns: Dialogue
    fact: str


@dataclass(frozen=True)
class View:
    """What one picture shows, whether scene or card; ``place`` is 0 or 1 where it is one of two pictures.

    ``world`` is what it might have shown.
    """

    size: tuple[int, int]
    shapes: tuple[Shape, ...] = ()
    text: str = ""
    text_box: Box = (0, 0, 0, 0)
    text_colour: str | None = None
    place: int | None = None
    world: World = WORLD

    @property
    def name(self) -> str:
        return "the image" if self.place is None else ("the first image", "the second image")[self.place]


@dataclass(frozen=True)
class Phrase:
    """A way to name shapes by colour, by kind, by both or by neither."""

    colour: str | None = None
    kind: str | None = None

    def among(self, shapes: Iterable[Shape]) -> list[Shape]:
        """The shapes it names, in their order."""
        return [s for s in shapes if self.colour in (None, s.colour) and self.kind in (None, s.kind)]

    def noun(self, rng: np.random.Generator, plural: bool = False) -> str:
        """``red circle``, ``red object``, ``circle`` or ``shape``, with an s for several."""
        kind = self.kind or pick(rng, ("object", "object", "shape") if self.colour else ("shape", "shape", "object"))
        return " ".join(filter(None, (self.colour, kind + ("s" if plural else ""))))


def view_of(item: Scene | Card, place: int | None = None, world: World = WORLD) -> View:
    """What the drawn picture shows."""
    if isinstance(item, Scene):
        return View(item.picture.size, shapes=item.shapes, place=place, world=world)
    card = View(item.picture.size, text=item.text, text_box=item.box, text_colour=item.colour)
    return replace(card, place=place, world=world)


def present(view: View) -> list[Phrase]:
    """Every phrase that names at least one shape of the picture."""
    colours, kinds = {shape.colour: None for shape in view.shapes}, {shape.kind: None for shape in view.shapes}
    both = {(shape.colour, shape.kind): None for shape in view.shapes}
    phrases = [Phrase(colour=c) for c in colours] + [Phrase(kind=k) for k in kinds] + [Phrase(c, k) for c, k in both]
    return [*phrases, Phrase()] if view.shapes else []


def unique(rng: np.random.Generator, view: View) -> Phrase | None:
    """A phrase that names exactly one shape, most often by colour and kind."""
    fitting = [p for p in present(view) if len(p.among(view.shapes)) == 1 and (p.colour or p.kind)]
    exact = [p for p in fitting if p.colour and p.kind]
    if not fitting:
        return None
    return pick(rng, exact) if exact and rng.random() < 0.6 else pick(rng, fitting)


def missing(rng: np.random.Generator, view: View, by: str | None = None) -> Phrase | None:
    """A phrase that names no shape, often a near miss; ``by`` is "colour", "kind" or "both" (None: any of them).

    A phrase by colour alone is never made of a text's own colour.
    """
    kinds, colours = view.world.kinds, view.world.colours
    by = by or weighted(rng, {"both": 0.55, "kind": 0.25, "colour": 0.2})
    if by == "kind":
        phrases = [Phrase(kind=kind) for kind in kinds]
    elif by == "colour":
        phrases = [Phrase(colour=colour) for colour in colours if not view.text]
    else:
        phrases = [Phrase(colour, kind) for colour, kind in product(colours, kinds)]
    absent = [phrase for phrase in phrases if not phrase.among(view.shapes)]
    near = [p for p in absent if Phrase(p.colour).among(view.shapes) or Phrase(kind=p.kind).among(view.shapes)]
    if near and by == "both" and rng.random() < 0.65:
        return pick(rng, near)
    return pick(rng, absent) if absent else None


def on_side(view: View, subject: Shape, side: str) -> list[Shape] | None:
    """The other shapes on that side of ``subject``: those whose centre lies beyond its box.

    None when some centre lies beyond the subject's centre but not clearly beyond its box, so that people would differ.
    """
    axis = 0 if side in ("left", "right") else 1
    sign = -1 if side in ("left", "above") else 1
    edge = subject.box[axis] if sign < 0 else subject.box[axis + 2]
    margin = 0.01 * view.size[axis]
    found = []
    for other in view.shapes:
        past_centre = sign * (other.centre[axis] - subject.centre[axis])
        past_edge = sign * (other.centre[axis] - edge)
        if other is subject or past_centre <= -margin:
            continue
        if past_edge < margin:
            return None
        found.append(other)
    return found


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def listed(parts: Sequence[str]) -> str:
    """``x``, ``x and y`` or ``x, y and z``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def named(shapes: Sequence[Shape]) -> str:
    """``the blue circle and two green stars``: like ones together, in the order of the first of each."""
    groups = Counter(f"{shape.colour} {shape.kind}" for shape in shapes)
    return listed([f"the {noun}" if many == 1 else f"{NUMBER_WORDS[many]} {noun}s" for noun, many in groups.items()])


def counted(many: int, nouns: str) -> str:
    """``3``, or ``0, there are no red circles.``, which both says the number and says that there are none."""
    return str(many) if many else f"0, there are no {nouns}."


def absent(noun: str, view: View) -> str:
    """``There is no star in the image.``"""
    return f"There is no {noun} in {view.name}."


def grounded(label: str, boxes: Iterable[Box], size: tuple[int, int]) -> str:
    """``<|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2]]<|/det|>`` in 0..999, left to right, then top to bottom.

    Coordinates are rounded to tens: a last digit that the model cannot see would only be noise to learn from.
    """
    width, height = size
    scale = (99.9 / width, 99.9 / height, 99.9 / width, 99.9 / height)
    rounded = ([min(10 * round(v * s), 999) for v, s in zip(box, scale, strict=True)] for box in sorted(boxes))
    inside = ", ".join(str(box) for box in rounded)
    return f"<|ref|>{label}<|/ref|><|det|>[{inside}]<|/det|>"
