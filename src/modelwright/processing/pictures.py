"""One picture or a nest of them, of any kind a caller may hold, as RGB ``PIL.Image``s; nothing here knows a palette."""

from collections.abc import Iterator
from typing import Any

from PIL import Image

from modelwright.errors import RequestError
from modelwright.processing.arrays import is_array, levels_of
from modelwright.processing.images import load_image


def as_pictures(images: Any) -> list[Image.Image]:
    """Every picture in ``images``, upright and RGB, in the order they are held.

    Args:
        images: what `load_image` reads, batches of arrays or tensors (see `levels_of`), or lists of these, nested at
            will.

    Raises:
        RequestError: there is no picture, or one cannot be read; the message states the rule and what was given.
    """
    pictures = list(_walk(images))
    if not pictures:
        raise RequestError("there must be at least one picture, got none")
    return pictures


def _walk(images: Any) -> Iterator[Image.Image]:
    if isinstance(images, list | tuple):
        for image in images:
            yield from _walk(image)
    elif is_array(images):
        yield from (load_image(Image.fromarray(levels)) for levels in levels_of(images))
    else:
        yield load_image(images)
