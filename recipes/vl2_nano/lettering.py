"""Sets a short text as a mask, in some typeface, size, spacing and slant; not where it goes nor its colour."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from recipes.vl2_nano.fonts import capital_height, face, families, is_slanted
from recipes.vl2_nano.palette import pick


@dataclass(frozen=True)
class Lettering:
    """A text in white on black, cropped to its ink; ``cuts`` are the columns where characters begin, and the end."""

    mask: Image.Image
    text: str
    cuts: tuple[float, ...]


def fitted_text(
    rng: np.random.Generator, text: str, room: tuple[int, int], sizes: tuple[float, float], exclude: Iterable[str] = ()
) -> Lettering:
    """The text as a mask no larger than ``room``.

    Capitals are as high as ``sizes``, least and most, allow, or as large as fits; a text that is too long for the least
    size loses its end.
    """
    least, most = sizes
    file = _font_file(rng, exclude)
    spacing = rng.uniform(0.04, 0.25) if rng.random() < 0.15 else 0.0
    turn = rng.uniform(-5, 5) if rng.random() < 0.25 else 0.0
    hard = rng.random() < 0.06
    capital = math.exp(rng.uniform(math.log(least), math.log(most)))
    while True:
        written = _written(text, file, capital / capital_height(file), spacing, turn, hard)
        scale = min(room[0] / written.mask.width, room[1] / written.mask.height)
        if scale >= 1:
            return written
        capital *= scale * 0.98
        if capital < least and len(text) > 1:
            text = text[:-1]
            capital = least


def _font_file(rng: np.random.Generator, exclude: Iterable[str]) -> str | None:
    by_family = families(exclude)
    if not by_family or rng.random() < 0.1:
        return None
    files = by_family[pick(rng, tuple(by_family))]
    upright = [file for file in files if not is_slanted(file)]
    return pick(rng, upright if upright and rng.random() < 0.88 else files)


def _written(text: str, file: str | None, size: float, spacing: float, turn: float, hard: bool) -> Lettering:
    """Text of ``size`` pixels to the em, ``spacing`` ems between characters, turned by ``turn`` degrees, cropped."""
    font = face(file, max(size, 6))
    steps = [font.getlength(character) + spacing * size for character in text]
    mask = Image.new("L", (math.ceil(sum(steps) + 2 * size), math.ceil(2 * size) + 2))
    pen = ImageDraw.Draw(mask)
    pen.fontmode = "1" if hard else "L"
    if spacing:
        for index, character in enumerate(text):
            pen.text((size / 2 + sum(steps[:index]), size / 3), character, fill=255, font=font)
    else:
        pen.text((size / 2, size / 3), text, fill=255, font=font)
    if turn:
        mask = mask.rotate(turn, Image.Resampling.BILINEAR)
    ink = mask.getbbox() or (0, 0, *mask.size)
    starts = [size / 2 + sum(steps[:index]) - ink[0] for index in range(len(text) + 1)]
    width = ink[2] - ink[0]
    return Lettering(mask.crop(ink), text, tuple(min(max(start, 0), width) for start in starts))
