"""Boxes and labels drawn on a copy of a picture; parsing them out of an answer is in `grounding`."""

import colorsys
from collections.abc import Iterable

from PIL import Image, ImageDraw

from modelwright.processing.fonts import Font, font_for
from modelwright.processing.grounding import Box, Grounding
from modelwright.processing.images import Picture, load_image

_GOLDEN_RATIO = 0.618034


def draw_groundings(image: Picture, groundings: Iterable[Grounding]) -> Image.Image:
    """A copy of ``image`` in RGB, upright as models see it, with every box outlined and labelled.

    There is one colour for each label, and all of it grows with the picture. Characters that no font of the system has
    are written as escapes. A label stands above its box, or inside it where there is no room, always within
    the picture and cut to its width.

    Args:
        image: anything `load_image` reads; its EXIF orientation is applied.
        groundings: boxes in pixels of the upright picture, as `parse_grounding` gives them.

    Raises:
        RequestError: the picture cannot be read.
    """
    picture = load_image(image)
    draw = ImageDraw.Draw(picture)
    shorter = min(picture.size)
    line = max(1, shorter // 150)
    size = max(10, shorter // 22)
    colours: dict[str, tuple[int, int, int]] = {}
    for grounding in groundings:
        colour = colours.setdefault(grounding.label, _colour(len(colours)))
        for box in grounding.boxes:
            corners = _inside(box, picture.size)
            draw.rectangle(corners, outline=colour, width=line)
            _draw_label(draw, picture.size, corners, grounding.label, colour, size)
    return picture


def _colour(number: int) -> tuple[int, int, int]:
    """Strong colours whose hues lie far apart, however many are asked for."""
    red, green, blue = colorsys.hsv_to_rgb((number * _GOLDEN_RATIO + 0.97) % 1, 0.9, 0.9)
    return int(red * 255), int(green * 255), int(blue * 255)


def _inside(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box in whole pixels of the picture, at least one pixel in each direction."""
    right, bottom = size[0] - 1, size[1] - 1
    x1, y1, x2, y2 = (round(value) for value in box)
    x1, y1 = min(max(x1, 0), right), min(max(y1, 0), bottom)
    return x1, y1, min(max(x2, x1), right), min(max(y2, y1), bottom)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corners: tuple[int, int, int, int],
    label: str,
    colour: tuple[int, int, int],
    pixels: int,
) -> None:
    margin = max(2, pixels // 10)
    font, text = font_for(" ".join(label.split()), pixels)
    text = _shorten(draw, text, size[0] - 2 * margin, font)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = int(right - left) + 2 * margin, int(bottom - top) + 2 * margin
    x = max(0, min(corners[0], size[0] - width))
    above = corners[1] - height
    y = above if above >= 0 else max(0, min(corners[1], size[1] - height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    draw.text((x + margin - left, y + margin - top), text, fill=ink, font=font)


def _shorten(draw: ImageDraw.ImageDraw, text: str, width: int, font: Font) -> str:
    """The text, or as much of its beginning as ``width`` pixels hold, at least one character."""
    if draw.textlength(text, font=font) <= width:
        return text
    while len(text) > 1 and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..." if draw.textlength(text + "...", font=font) <= width else text
