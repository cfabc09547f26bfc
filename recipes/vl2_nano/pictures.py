"""Draws the pictures of the domain, scenes of shapes and cards with text, and says what is in them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from recipes.vl2_nano.fonts import ALPHABET
from recipes.vl2_nano.lettering import fitted_text
from recipes.vl2_nano.palette import COLOURS, RGB, canvas, light, name_of, pick, shade, weighted
from recipes.vl2_nano.world import WORLD, World

Box = tuple[int, int, int, int]
"""Pixels (x1, y1, x2, y2); x2 and y2 are the first column and row outside."""

_USUAL_SIZES = ((128, 128), (200, 200), (224, 224), (256, 256), (320, 240), (384, 384), (400, 300), (512, 512))


@dataclass(frozen=True)
class Shape:
    """One drawn shape; ``box`` encloses every pixel it touches."""

    kind: str
    colour: str
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclass(frozen=True)
class Scene:
    """A picture of one to five shapes, listed from left to right."""

    picture: Image.Image
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Card:
    """A picture of a short text; ``colour`` is its name where it has an unmistakable one.

    ``cuts`` are the columns where characters begin, and where the last one ends.
    """

    picture: Image.Image
    text: str
    box: Box
    colour: str | None
    cuts: tuple[float, ...]


@dataclass(frozen=True)
class Sheet:
    """A picture full of lines of characters, for eyes that are learning to read; ``characters`` with their boxes."""

    picture: Image.Image
    characters: tuple[tuple[str, tuple[float, float, float, float]], ...]


def picture_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height: 96 to 512 pixels a side, at most twice as long as wide."""
    if rng.random() < 0.3:
        width, height = pick(rng, _USUAL_SIZES)
    else:
        width = math.exp(rng.uniform(math.log(96), math.log(512)))
        height = width if rng.random() < 0.3 else min(512, width * rng.uniform(1, 2))
    if rng.random() < 0.5:
        width, height = height, width
    return round(width), round(height)


def draw_scene(rng: np.random.Generator, world: World = WORLD) -> Scene:
    """One to five shapes whose boxes keep a gap; a shape's longer side is 12 to 40 % of the picture's shorter."""
    picture = canvas(rng, picture_size(rng), light(rng))
    smooth = rng.random() < 0.55
    shapes: list[Shape] = []
    for kind, colour in _cast(rng, world):
        place = _free_place(rng, picture.size, [shape.box for shape in shapes])
        if place is not None:
            shapes.append(Shape(kind, colour, _paint(rng, picture, place, kind, colour, smooth)))
    return Scene(picture, tuple(sorted(shapes, key=lambda shape: shape.box)))


def draw_card(rng: np.random.Generator, exclude: Iterable[str] = ()) -> Card:
    """One to six digits and capitals; ``exclude`` names font families to keep away from.

    A character is 9 to 60 % of the picture's shorter side in height, or what fits; a text that would be smaller is cut.
    """
    size = picture_size(rng)
    ground, ink = _card_colours(rng)
    picture = canvas(rng, size, ground)
    region = _frame(rng, picture, ground, ink)
    wanted = "".join(pick(rng, ALPHABET) for _ in range(int(rng.integers(1, 7))))
    x1, y1, x2, y2 = region
    sizes = (0.09 * min(size), 0.6 * min(size))
    written = fitted_text(rng, wanted, (x2 - x1, y2 - y1), sizes, exclude)
    mask = written.mask
    left, top = int(rng.integers(x1, x2 - mask.width + 1)), int(rng.integers(y1, y2 - mask.height + 1))
    picture.paste(ink, (left, top), mask)
    box = (left, top, left + mask.width, top + mask.height)
    name = name_of(ink)
    return Card(
        picture, written.text, box, name if name in COLOURS else None, tuple(left + cut for cut in written.cuts)
    )


def draw_sheet(rng: np.random.Generator, side: int) -> Sheet:
    """A square of ``side`` pixels, filled from top to bottom with lines of 8 to 40 % of its height."""
    ground, ink = _card_colours(rng)
    picture = canvas(rng, (side, side), ground)
    characters: list[tuple[str, tuple[float, float, float, float]]] = []
    top = int(rng.integers(0, side // 12))
    while (height := round(math.exp(rng.uniform(math.log(0.08), math.log(0.4))) * side)) <= side - top:
        text = "".join(pick(rng, ALPHABET) for _ in range(max(1, round(rng.uniform(0.7, 1.4) * side / height))))
        line = fitted_text(rng, text, (side, height), (0.9 * height, height))
        left = int(rng.integers(0, side - line.mask.width + 1))
        picture.paste(ink, (left, top), line.mask)
        for letter, start, end in zip(line.text, line.cuts, line.cuts[1:], strict=False):
            characters.append((letter, (left + start, top, left + end, top + line.mask.height)))
        top += line.mask.height + int(rng.integers(2, 1 + side // 12))
    return Sheet(picture, tuple(characters))


def _cast(rng: np.random.Generator, world: World) -> list[tuple[str, str]]:
    """Which shapes to draw, as (kind, colour); likenesses are common so that counting and telling apart are needed."""
    number = weighted(rng, {1: 0.14, 2: 0.18, 3: 0.2, 4: 0.22, 5: 0.26})
    theme = weighted(rng, {"any": 0.4, "one kind": 0.14, "one colour": 0.1, "few": 0.36})
    kinds, colours = list(world.kinds), list(world.colours)
    if theme in ("one kind", "few"):
        kinds = [pick(rng, kinds) for _ in range(1 if theme == "one kind" else 2)]
    if theme in ("one colour", "few"):
        colours = [pick(rng, colours) for _ in range(1 if theme == "one colour" else 2)]
    return [(pick(rng, kinds), pick(rng, colours)) for _ in range(number)]


def _free_place(rng: np.random.Generator, size: tuple[int, int], taken: list[Box]) -> Box | None:
    """A square that keeps its distance from ``taken`` and from the edge; None after too many tries."""
    gap = max(2, round(0.02 * min(size)))
    for attempt in range(48):
        largest = 0.4 if attempt < 18 else 0.22
        side = math.floor(rng.uniform(0.122, largest) * min(size))
        left, top = (int(rng.integers(1, length - side)) for length in size)
        around = (left - gap, top - gap, left + side + gap, top + side + gap)
        if not any(_overlap(around, box) for box in taken):
            return left, top, left + side, top + side
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _paint(rng: np.random.Generator, picture: Image.Image, place: Box, kind: str, colour: str, smooth: bool) -> Box:
    """Draw the shape, one in five with a darker rim, in the square ``place`` and return its tight box."""
    left, top, right, _ = place
    side = right - left
    points = _corners(rng, kind)
    fill = shade(rng, colour)
    whole = _mask(points, side, 1.0, smooth)
    if rng.random() < 0.2:
        rim = _times(fill, 0.15 if rng.random() < 0.2 else rng.uniform(0.55, 0.8))
        thickness = max(1, round(side * rng.uniform(0.02, 0.05)))
        picture.paste(rim, (left, top), whole)
        picture.paste(fill, (left, top), _mask(points, side, 1 - 2 * thickness / side, smooth))
    else:
        picture.paste(fill, (left, top), whole)
    x1, y1, x2, y2 = whole.getbbox() or (0, 0, side, side)
    return left + x1, top + y1, left + x2, top + y2


def _times(colour: RGB, factor: float) -> RGB:
    red, green, blue = (round(channel * factor) for channel in colour)
    return red, green, blue


def _mask(points: np.ndarray | None, side: int, scale: float, smooth: bool) -> Image.Image:
    """The shape in white on black, [side, side], shrunk towards its middle by ``scale``; no points make a circle."""
    fine = 3 if smooth else 1
    mask = Image.new("L", (side * fine, side * fine))
    pen = ImageDraw.Draw(mask)
    last = side * fine - 1
    if points is None:
        low, high = last * (1 - scale) / 2, last * (1 + scale) / 2
        pen.ellipse((low, low, high, high), fill=255)
    else:
        middle = points.mean(axis=0)
        corners = ((points - middle) * scale + middle) * last
        pen.polygon([(x, y) for x, y in corners.tolist()], fill=255)
    return mask.reduce(fine) if smooth else mask


def _corners(rng: np.random.Generator, kind: str) -> np.ndarray | None:
    """Corners in the unit square, the longer side of their box being 1; None for a circle, which has none."""
    if kind == "circle":
        return None
    if kind == "square":
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=float)
        turn = weighted(rng, {0.0: 0.78, float(rng.uniform(-15, 15)): 0.18, float(rng.uniform(-45, 45)): 0.04})
    elif kind == "triangle":
        tip = 0.5 if rng.random() < 0.92 else pick(rng, (0.0, 1.0, 0.3, 0.7))
        height = math.sqrt(0.75) if rng.random() < 0.35 else rng.uniform(0.75, 1.25)
        corners = np.array([(tip, 0), (1, height), (0, height)])
        slight, any_turn = float(rng.uniform(-20, 20)), float(rng.uniform(-180, 180))
        turn = weighted(rng, {0.0: 0.72, 180.0: 0.1, slight: 0.1, any_turn: 0.08})
    elif kind == "heart":
        turns = np.linspace(0, 2 * math.pi, 60, endpoint=False)
        down = 13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)
        corners = np.stack([16 * np.sin(turns) ** 3, -down], axis=1)
        turn = weighted(rng, {0.0: 0.75, float(rng.uniform(-25, 25)): 0.25})
    else:
        inner = 0.382 if rng.random() < 0.25 else rng.uniform(0.34, 0.55)
        angles = np.arange(10) * math.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.0, inner)
        corners = np.stack([np.sin(angles) * radii, -np.cos(angles) * radii], axis=1)
        turn = weighted(rng, {0.0: 0.7, float(rng.uniform(-36, 36)): 0.3})
    angle = math.radians(turn)
    turned = corners @ np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    low = turned.min(axis=0)
    return (turned - low) / (turned.max(axis=0) - low).max()


def _card_colours(rng: np.random.Generator) -> tuple[RGB, RGB]:
    """Background and text colour, at least 100 grey levels apart in some channel."""
    manner = weighted(rng, {"dark on light": 0.5, "colour on light": 0.32, "light on dark": 0.18})
    if manner == "colour on light":
        return light(rng), shade(rng, pick(rng, tuple(COLOURS)))
    red, green, blue = (0, 0, 0) if rng.random() < 0.4 else (int(level) for level in rng.integers(0, 100, 3))
    dark = (red, green, blue)
    if manner == "dark on light":
        return light(rng), dark
    ground = shade(rng, pick(rng, ("red", "green", "blue", "purple", "black"))) if rng.random() < 0.5 else dark
    pale = light(rng)
    if max(abs(a - b) for a, b in zip(ground, pale, strict=True)) < 100:
        pale = (255, 255, 255)
    return ground, pale


def _frame(rng: np.random.Generator, picture: Image.Image, ground: RGB, ink: RGB) -> Box:
    """Sometimes draw a border or a lighter sheet; return where text may go."""
    width, height = picture.size
    inset = max(2, round(min(width, height) * rng.uniform(0.01, 0.1)))
    region = (inset, inset, width - inset, height - inset)
    style = weighted(rng, {"none": 0.74, "border": 0.14, "sheet": 0.12})
    if style == "none":
        return (2, 2, width - 2, height - 2)
    line = max(1, inset // 4)
    fill = None if style == "border" else ((255, 255, 255) if min(ground) > 190 else _times(ground, 0.8))
    edge = inset // 2
    ImageDraw.Draw(picture).rectangle((edge, edge, width - edge - 1, height - edge - 1), fill, ink, line)
    clear = edge + line + 2
    return (max(region[0], clear), max(region[1], clear), min(region[2], width - clear), min(region[3], height - clear))
