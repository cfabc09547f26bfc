"""A palette for ImageGPT from the user's own pictures, by k-means (the extra ``modelwright[palette]``); no model."""

from typing import Any

import numpy as np
from PIL import Image

from modelwright.errors import ConfigError, RequestError
from modelwright.processing.pictures import as_pictures

MAX_PIXELS_EACH = 2**16
"""A larger picture is first shrunk to about as many pixels, by the mean of those that fall together."""
MAX_COLOURS = 2**16
"""k-means sees at most as many distinct colours: where there are more, neighbours are merged into their mean."""
MAX_K = MAX_COLOURS // 8
"""Merging never leaves fewer colours: each step halves the levels of three channels, and stops at ``MAX_COLOURS``."""

PLACES = np.array([65536, 256, 1])
"""A colour's red, green and blue as one number."""


def fit_clusters(images: Any, k: int, seed: int = 0) -> np.ndarray:
    """The ``k`` colours that stand for the pictures' own with the least squared error k-means finds.

    Args:
        images: anything `as_pictures` takes; sizes may differ, and each picture counts by its pixels.
        k: colours of the palette, at most 8192; the pictures must hold as many distinct ones.
        seed: of k-means' start; the same pictures, ``k`` and ``seed`` give the same palette.

    Returns:
        float32 ``[k, 3]`` in -1..1 (``colour / 127.5 - 1``), darkest first: in order of red + green + blue, then of
        red, green and blue. Where the pictures hold exactly ``k`` colours, those are it.

    Raises:
        RequestError: ``k`` is no number of 1..8192, or above the distinct colours there are; a bad picture.
        ConfigError: scikit-learn is not installed.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
        raise RequestError(f"k must be a whole number from 1 to {MAX_K}, got {k!r}")
    colours, counts = _count_colours(as_pictures(images))
    if k > len(colours):
        raise RequestError(f"k ({k}) must be at most the number of distinct colours in the pictures ({len(colours)})")
    centres = colours.astype(np.float64) if k == len(colours) else _k_means(*_merged(colours, counts), k, seed)
    order = np.lexsort((centres[:, 2], centres[:, 1], centres[:, 0], centres.sum(1)))
    return np.clip(centres[order] / 127.5 - 1, -1, 1).astype(np.float32)


def _count_colours(pictures: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct colours uint8 [n, 3], in order, and how many pixels have each."""
    counts = np.zeros(2**24, np.int64)  # one for each colour there is: bounded however many pictures come
    for picture in pictures:
        levels = np.asarray(_shrunk(picture)).reshape(-1, 3)
        codes, found = np.unique(levels @ PLACES, return_counts=True)
        counts[codes] += found
    codes = np.flatnonzero(counts)
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.uint8), counts[codes]


def _shrunk(picture: Image.Image) -> Image.Image:
    factor = int(np.ceil(np.sqrt(picture.width * picture.height / MAX_PIXELS_EACH)))
    return picture.reduce(factor) if factor > 1 else picture


def _merged(colours: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_COLOURS` colours float64 [m, 3] and counts [m]: those that share their upper bits as their mean."""
    merged, sums = colours.astype(np.float64), counts
    for dropped in range(1, 8):
        if len(merged) <= MAX_COLOURS:
            break
        _, cell = np.unique((colours >> dropped) @ PLACES, return_inverse=True)
        sums = np.bincount(cell, counts)
        merged = np.stack([np.bincount(cell, counts * channel) / sums for channel in colours.T], axis=1)
    return merged, sums


def _k_means(colours: np.ndarray, counts: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Centres float64 [k, 3] of the weighted colours [m, 3]."""
    try:
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ConfigError("fit_clusters needs scikit-learn: pip install modelwright[palette]") from error
    with threadpool_limits(1):  # threads would add up in an order of their own, and not come to the same twice
        means = KMeans(k, random_state=seed).fit(colours, sample_weight=counts)
    return np.asarray(means.cluster_centers_, np.float64)
