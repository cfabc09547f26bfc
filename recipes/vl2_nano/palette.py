"""Colours by name and light, dark, plain, graded or grainy canvases; it knows nothing of shapes or text."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image, ImageChops

RGB = tuple[int, int, int]
T = TypeVar("T")

SHADES: Mapping[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (220, 20, 60), (200, 0, 0), (230, 30, 30), (214, 39, 40), (231, 76, 60), (178, 34, 34)),
    "green": ((0, 128, 0), (0, 255, 0), (34, 139, 34), (0, 170, 0), (44, 160, 44), (46, 204, 113), (0, 100, 0)),
    "blue": ((0, 0, 255), (30, 60, 220), (0, 0, 180), (31, 119, 180), (30, 144, 255), (65, 105, 225), (0, 0, 128)),
    "yellow": ((255, 255, 0), (255, 235, 0), (240, 220, 0), (255, 215, 0), (250, 230, 50), (241, 200, 15)),
    "purple": ((128, 0, 128), (148, 0, 211), (153, 50, 204), (155, 89, 182), (138, 43, 226), (160, 32, 240)),
    "orange": ((255, 165, 0), (255, 140, 0), (255, 128, 0), (255, 127, 14), (243, 156, 18), (230, 126, 34)),
    "black": ((0, 0, 0), (10, 10, 10), (20, 20, 20), (34, 34, 34)),
    "pink": ((255, 105, 180), (255, 20, 147), (255, 64, 160), (240, 98, 146), (233, 30, 120), (255, 90, 170)),
}
"""For each name the exact colour that most programs mean by it, then its usual neighbours."""
COLOURS = {name: shades for name, shades in SHADES.items() if name != "pink"}
"""The seven of vl2-nano; it is taught the last by ``recipes/vl2_teach``."""

_HUES = {  # degrees, with gaps in which no name is certain
    "red": (-15, 13),
    "orange": (20, 42),
    "yellow": (47, 66),
    "green": (80, 165),
    "blue": (195, 255),
    "purple": (264, 315),
    "pink": (322, 343),
}


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of ``options``, each as likely as the others."""
    return options[int(rng.integers(len(options)))]


def weighted(rng: np.random.Generator, table: Mapping[T, float]) -> T:
    """One key of ``table``, as likely as its weight says."""
    left = rng.random() * sum(table.values())
    for key, weight in table.items():
        left -= weight
        if left < 0:
            return key
    return next(iter(table))


def name_of(rgb: RGB) -> str | None:
    """The name of an unmistakable colour, or None for a colour between two names or too pale to have one."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in rgb))
    if value <= 0.2:
        return "black"
    if saturation < 0.4 or value < 0.38:
        return None
    degrees = hue * 360
    for name, (low, high) in _HUES.items():
        if low <= degrees <= high or low <= degrees - 360 <= high:
            return name
    return None


def shade(rng: np.random.Generator, name: str) -> RGB:
    """A shade of the named colour: often its first entry exactly, else a neighbour, often moved a little."""
    shades = SHADES[name]
    anchor = shades[0] if rng.random() < 0.35 else pick(rng, shades)
    if rng.random() < 0.4:
        return anchor
    reach = 4 if name == "black" else 14  # a tinted black would be a dark green or blue
    moved = _clipped(np.array(anchor) + rng.integers(-reach, reach + 1, 3))
    return moved if name_of(moved) == name else anchor


def light(rng: np.random.Generator) -> RGB:
    """A background colour that none of the named colours can be taken for: white, near white, pastel or pale grey."""
    tone = weighted(rng, {"white": 0.35, "near": 0.2, "pastel": 0.33, "grey": 0.12})
    if tone == "white":
        return (255, 255, 255)
    if tone == "near":
        return _clipped(rng.integers(238, 256, 3))
    if tone == "pastel":
        return _clipped(rng.integers(205, 256, 3))
    return _clipped(rng.integers(200, 240) + rng.integers(-3, 4, 3))


def canvas(rng: np.random.Generator, size: tuple[int, int], colour: RGB) -> Image.Image:
    """A picture of ``size`` (width, height) filled with ``colour``: plain, graded, grainy, or both."""
    style = weighted(rng, {"plain": 0.5, "gradient": 0.25, "grain": 0.17, "both": 0.08})
    picture = _gradient(rng, size, colour) if style in ("gradient", "both") else Image.new("RGB", size, colour)
    return _grainy(rng, picture) if style in ("grain", "both") else picture


def _gradient(rng: np.random.Generator, size: tuple[int, int], colour: RGB) -> Image.Image:
    """Bilinear between four corners; a light colour stays light."""
    low = 195 if min(colour) >= 195 else 0
    far = np.clip(np.array(colour) + rng.integers(-45, 46, 3), low, 255)
    toward = np.array(pick(rng, (((0, 1), (0, 1)), ((0, 0), (1, 1)), ((0, 0.5), (0.5, 1)), ((0.5, 0), (1, 0.5)))))
    corners = np.array(colour) + toward[..., None] * (far - np.array(colour))  # [2, 2, 3]
    tiny = Image.fromarray(corners.astype(np.uint8))
    return tiny.resize(size, Image.Resampling.BILINEAR, box=(0.5, 0.5, 1.5, 1.5))


def _grainy(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Grey or coloured noise of a few grey levels either way."""
    width, height = picture.size
    strength = rng.uniform(2, 10)
    ramp = [round(128 + strength * (level / 127.5 - 1)) for level in range(256)]
    if rng.random() < 0.5:
        noise = Image.frombytes("L", picture.size, rng.bytes(width * height)).point(ramp)
        noise = Image.merge("RGB", (noise, noise, noise))
    else:
        noise = Image.frombytes("RGB", picture.size, rng.bytes(3 * width * height)).point(ramp * 3)
    return ImageChops.add(picture, noise, 1, -128)


def _clipped(values: np.ndarray) -> RGB:
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue
