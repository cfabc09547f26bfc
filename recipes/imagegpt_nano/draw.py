"""Draws digits and shapes as 20 x 20 tokens of the palette from a seed; no files, no model.

Strokes are laid by the distance of each pixel to a polyline, so that a picture is the same on every machine; a fifth of
the digits is set in the typeface that Pillow carries.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from recipes.imagegpt_nano.glyphs import LABELS, Line, digit, shape
from recipes.imagegpt_nano.palette import COLOURS, STEPS, TOKENS

SIDE = 20
PIXELS = SIDE * SIDE
ZOOM = 4  # printed digits are set this much larger, then averaged
DIGIT_SHARE, PRINTED_SHARE, FILLED_SHARE = 0.7, 0.2, 0.6

_GRID = np.stack(np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5), axis=-1).reshape(-1, 2)  # [pixels, (x, y)]


@dataclass(frozen=True)
class Pictures:
    """Drawn pictures and what they show.

    Attributes:
        tokens: int64 ``[count, PIXELS]`` in raster order.
        labels: int64 ``[count]``, indices of ``glyphs.LABELS``.
        schemes: int64 ``[count]``, indices of ``palette.SCHEMES``.
    """

    tokens: np.ndarray
    labels: np.ndarray
    schemes: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def recoloured(self, schemes: np.ndarray) -> "Pictures":
        """The same drawings in other ``schemes`` ``[count]``."""
        levels = (TOKENS[self.schemes][:, None] == self.tokens[..., None]).argmax(-1)
        return Pictures(TOKENS[schemes[:, None], levels], self.labels, schemes)


def as_images(tokens: np.ndarray) -> np.ndarray:
    """uint8 ``[count, SIDE, SIDE, 3]`` of ``tokens [count, PIXELS]``."""
    return COLOURS[tokens].reshape(-1, SIDE, SIDE, 3)


def join_halves(upper: np.ndarray, lower: np.ndarray, row: int = SIDE // 2) -> np.ndarray:
    """Tokens ``[count, PIXELS]`` with the rows above ``row`` of one and the rest of the other."""
    return np.concatenate([upper[:, : row * SIDE], lower[:, row * SIDE :]], axis=1)


def draw_pictures(rng: np.random.Generator, count: int) -> Pictures:
    """``count`` pictures, seven in ten of them digits; each digit is as likely as another, and so is each shape."""
    is_digit = rng.random(count) < DIGIT_SHARE
    labels = np.where(is_digit, rng.integers(10, size=count), rng.integers(10, len(LABELS), size=count))
    return draw_labels(rng, labels)


def draw_labels(rng: np.random.Generator, labels: np.ndarray) -> Pictures:
    """A picture of each of ``labels``, in a scheme drawn for it."""
    schemes = rng.integers(len(TOKENS), size=len(labels))
    shares = np.stack([share_of_ink(rng, int(label)) for label in labels])  # [count, pixels]
    levels = np.rint(shares * STEPS).astype(np.int64)
    return Pictures(TOKENS[schemes[:, None], levels], labels.astype(np.int64), schemes)


def share_of_ink(rng: np.random.Generator, label: int) -> np.ndarray:
    """How much of each pixel is ink, float64 ``[PIXELS]`` in 0..1."""
    if label >= 10:
        return _shape(rng, LABELS[label])
    return _printed(rng, label) if rng.random() < PRINTED_SHARE else _written(rng, label)


def _written(rng: np.random.Generator, value: int) -> np.ndarray:
    """A digit in strokes of one to two and a half pixels."""
    height = rng.uniform(13.5, 16)
    width = height * rng.uniform(0.5, 0.66)
    lines = _placed(rng, digit(rng, value), (width, height), slant=rng.uniform(-0.05, 0.2), turn=rng.uniform(-4, 4))
    distance = np.min([_distance(line) for line in lines], axis=0)
    return np.clip(rng.uniform(0.6, 1.2) - distance + 0.5, 0, 1)


def _shape(rng: np.random.Generator, name: str) -> np.ndarray:
    """A shape, filled or outlined."""
    size = rng.uniform(12.5, 16)
    turn = rng.uniform(-8, 8)
    [line] = _placed(rng, [shape(name)], (size, size * rng.uniform(0.95, 1.05)), slant=0.0, turn=turn)
    distance = _distance(line)
    if rng.random() < FILLED_SHARE:
        return np.clip(np.where(_inside(line), distance, -distance) + 0.5, 0, 1)
    return np.clip(rng.uniform(0.6, 1.1) - distance + 0.5, 0, 1)


def _printed(rng: np.random.Generator, value: int) -> np.ndarray:
    """A digit of Pillow's own typeface, slanted and stretched a little."""
    side = SIDE * ZOOM
    font = ImageFont.load_default(rng.uniform(18, 21.5) * ZOOM)
    tile = Image.new("L", (side, side))
    pen = ImageDraw.Draw(tile)
    weight = int(rng.integers(0, 3))
    left, top, right, bottom = pen.textbbox((0, 0), str(value), font, stroke_width=weight)
    x, y = _centre(rng) * ZOOM
    pen.text((x - (left + right) / 2, y - (top + bottom) / 2), str(value), 255, font, stroke_width=weight)
    slant, stretch = rng.uniform(-0.05, 0.2), rng.uniform(0.9, 1.1)
    back = (1 / stretch, slant, x - x / stretch - slant * y, 0, 1, 0)
    tile = tile.transform(tile.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    return np.asarray(tile.reduce(ZOOM)).reshape(-1) / 255


def _centre(rng: np.random.Generator) -> np.ndarray:
    return SIDE / 2 + np.array([rng.uniform(-1.2, 1.2), rng.uniform(-0.6, 0.6)])


def _placed(
    rng: np.random.Generator, lines: list[Line], size: tuple[float, float], slant: float, turn: float
) -> list[Line]:
    """The lines scaled to ``size`` pixels, slanted to the right, turned by ``turn`` degrees and put near the middle."""
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, -slant], [0, 1]]) @ np.diag(size)
    centre = _centre(rng)
    return [(line - 0.5) @ matrix.T + centre for line in lines]


def _distance(line: Line) -> np.ndarray:
    """From each pixel's middle to the nearest point of a polyline, in pixels, float64 ``[PIXELS]``."""
    start, along = line[:-1], np.diff(line, axis=0)  # [segments, 2]
    offset = _GRID[:, None] - start  # [pixels, segments, 2]
    share = np.clip((offset * along).sum(-1) / (along**2).sum(-1), 0, 1)
    gap = offset - share[..., None] * along
    return np.sqrt((gap**2).sum(-1).min(axis=1))


def _inside(line: Line) -> np.ndarray:
    """Whether each pixel's middle is in the polygon: a ray to the right crosses its boundary an odd number of times."""
    (x1, y1), (x2, y2) = line[:-1].T, line[1:].T
    x, y = _GRID[:, :1], _GRID[:, 1:]  # [pixels, 1]
    spans = (y1 <= y) != (y2 <= y)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = x1 + (y - y1) / (y2 - y1) * (x2 - x1)
    return (spans & (x < crossing)).sum(axis=1) % 2 == 1
