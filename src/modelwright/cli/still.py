"""One still picture for a model of fixed size: opened as `chat` opens pictures, its middle cut to the model's shape."""

from pathlib import Path

from PIL import Image

from modelwright.errors import RequestError
from modelwright.processing.images import load_image

MOVING = ("GIF", "PNG", "WEBP", "AVIF")
"""Formats whose further frames are motion; others hold pages or thumbnails, and their first frame is the picture."""
LEAST_SHARE = 1 / 8
"""Of a picture's area, what must be left when it is cut to the model's shape."""


def open_still(path: Path) -> Image.Image:
    """The upright RGB picture in a file.

    Raises:
        RequestError: it is missing, no picture, damaged, too large, without pixels, or moves.
    """
    picture = load_image(path)
    frames = count_frames(path)
    if frames > 1:
        raise RequestError(f"{path} is animated, {frames} frames; one still picture is completed")
    return picture


def count_frames(path: Path) -> int:
    """How many pictures a file shows one after another; 1 where it is not animated."""
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) if image.format in MOVING else 1
    except Exception:  # the first frame is sound, as was seen; what comes after it may raise almost anything
        return 1


def cut_middle(picture: Image.Image, name: str, width: int, height: int) -> Image.Image:
    """The largest middle part with the proportions ``width`` to ``height``, so that nothing is stretched.

    Raises:
        RequestError: the picture is so long or so tall that less than an eighth of it would be left.
    """
    wide = min(picture.width, picture.height * width / height)
    tall = min(picture.height, picture.width * height / width)
    share = wide * tall / (picture.width * picture.height)
    if share < LEAST_SHARE:
        raise RequestError(
            f"{name} is {picture.width} x {picture.height} pixels: cut to the model's shape, {width} to {height}, "
            f"{share:.1%} of it would be left, and it must be at least {LEAST_SHARE:.1%}"
        )
    size = max(1, round(wide)), max(1, round(tall))
    left, top = (picture.width - size[0]) // 2, (picture.height - size[1]) // 2
    return picture.crop((left, top, left + size[0], top + size[1]))
