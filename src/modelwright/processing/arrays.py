"""Pictures as numbers, of any layout and number type, made uint8 with channels last; nothing here opens a file."""

import sys
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from modelwright.errors import RequestError

CHANNELS = (1, 3, 4)
"""Channels an array may have: grey, RGB, or RGB with transparency."""


class Array(Protocol):
    """What numpy arrays and torch tensors have in common."""

    @property
    def shape(self) -> Any: ...

    @property
    def ndim(self) -> int: ...


def is_array(value: Any) -> bool:
    """Whether it is a numpy array or a torch tensor."""
    torch = sys.modules.get("torch")  # a tensor exists only where torch was imported
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def levels_of(array: Any) -> Iterator[np.ndarray]:
    """The pictures of an array or tensor as uint8 ``[H, W]`` or ``[H, W, C]``.

    Args:
        array: ``[H, W]``, ``[H, W, C]``, ``[C, H, W]`` or a batch of the latter two, with 1, 3 or 4 channels. Where the
            first and the last side could both be channels, the one of 3 is, else the first. Integers are 0..255
            (uint16: 0..65535); floats are 0..1, or 0..255 where a value is above 1.

    Raises:
        RequestError: another shape, no pixel at all, or values that are out of range or no numbers.
    """
    if not isinstance(array, np.ndarray):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.ndim == 4:
        if not len(array):
            raise RequestError(f"a batch of pictures must hold at least one, got shape {list(array.shape)}")
        yield from (_to_levels(_channels_last(image, array.shape)) for image in array)
    else:
        yield _to_levels(array if array.ndim == 2 else _channels_last(array, array.shape))


def _channels_last(image: np.ndarray, given: tuple[int, ...]) -> np.ndarray:
    """[H, W, C] of a picture either way round, [H, W] where C is 1; ``given`` is the shape to name in an error."""
    first, last = image.ndim == 3 and image.shape[0] in CHANNELS, image.ndim == 3 and image.shape[-1] in CHANNELS
    if not (first or last):
        raise RequestError(
            "an array must be [H, W], [H, W, C], [C, H, W] or a batch of the latter two, with 1, 3 or 4 channels C, "
            f"got shape {list(given)}"
        )
    if not last or (first and not (image.shape[-1] == 3 != image.shape[0])):
        image = np.moveaxis(image, 0, -1)
    return image[..., 0] if image.shape[-1] == 1 else image


def _to_levels(image: np.ndarray) -> np.ndarray:
    """uint8 of values of any other number type."""
    if 0 in image.shape:
        raise RequestError(f"a picture must have pixels, got shape {list(image.shape)}")
    if image.dtype.kind not in "buif":
        raise RequestError(f"the values of a picture must be numbers, got {image.dtype}")
    low, high = image.min(), image.max()
    top = 65535 if image.dtype == np.uint16 else 255
    if not (low >= 0 and high <= top):  # false for a value that is no number, too
        raise RequestError(f"the values of a picture must lie in 0..1 or 0..{top}, got {low}..{high}")
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    whole = image.dtype.kind in "ui"
    scale = 255 / top if whole else 255 if high <= 1 else 1
    return np.floor(image.astype(np.float64) * scale + 0.5).astype(np.uint8)
