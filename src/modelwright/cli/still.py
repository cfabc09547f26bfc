"""One still picture for a model of fixed size: opened as `chat` opens pictures, its middle cut to the model's shape."""

from pathlib import Path

from PIL import Image

from modelwright.errors import RequestError
from modelwright.processing.images import count_frames, load_image

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
