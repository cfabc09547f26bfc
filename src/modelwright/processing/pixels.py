"""ImageGPT's pixels, numpy and Pillow only: pictures to the nearest colours of a palette, and back; no torch, no model.

Source: Chen et al., "Generative Pretraining from Pixels" (ICML 2020), section 3.3; the numbers are transformers' own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from modelwright.errors import RequestError
from modelwright.processing.pixel_settings import PixelSettings

MAX_DISTANCES = 2**21
"""Distances computed at a time, 16 MiB of them: pixels beyond ``MAX_DISTANCES / k`` wait their turn."""
TIE = 1e-12
"""Squared distances closer than this are equal: what rounding alone tells apart is a tie, and the lowest index wins."""


class Pixels:
    """Pictures as rows of palette indices in raster order (rows from the top, each from the left), and back.

    Args:
        settings: size, filter and palette.
    """

    def __init__(self, settings: PixelSettings):
        self.settings = settings
        self._levels = settings.levels()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read a folder's ``preprocessor_config.json``; raises as `PixelSettings.read` does."""
        return cls(PixelSettings.read(folder))

    @property
    def start_token(self) -> int:
        """The token before a picture's first pixel, and the number of colours: they are the tokens below it."""
        return len(self.settings.require_clusters())

    def fit(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """uint8 ``[batch, height, width, 3]`` of RGB pictures, each stretched to the size where the settings say so.

        Raises:
            RequestError: the settings leave pictures as they are, and these differ in size.
        """
        settings = self.settings
        if settings.do_resize:
            size, resample = (settings.width, settings.height), Image.Resampling(settings.resample)
            pictures = [picture.resize(size, resample) for picture in pictures]
        sizes = sorted({picture.size for picture in pictures})
        if len(sizes) != 1:
            listed = ", ".join(f"{width} x {height}" for width, height in sizes)
            raise RequestError(f"without do_resize all pictures must have one size, got {listed or 'no picture'}")
        return np.stack([np.asarray(picture) for picture in pictures])

    def encode(self, levels: np.ndarray) -> np.ndarray:
        """int64 ``[batch, height * width]``: the nearest colour of each pixel of uint8 ``[batch, height, width, 3]``.

        Nearest is by squared distance in the palette's space; of colours equally near, the lowest index is taken.
        """
        if levels.dtype != np.uint8 or levels.ndim != 4 or levels.shape[-1] != 3:
            raise RequestError(f"pixels must be uint8 [batch, height, width, 3], got {levels.dtype} {levels.shape}")
        clusters, pixels = self.settings.require_clusters(), levels.reshape(-1, 3)
        step = max(1, MAX_DISTANCES // len(clusters))
        found = [nearest(self._values(pixels[start : start + step]), clusters) for start in range(0, len(pixels), step)]
        return np.concatenate([np.empty(0, np.int64), *found]).reshape(len(levels), levels.shape[1] * levels.shape[2])

    def values(self, levels: np.ndarray) -> np.ndarray:
        """float32 ``[batch, 3, height, width]``: rescaled and normalised, not quantised."""
        return np.ascontiguousarray(self._values(levels).transpose(0, 3, 1, 2))

    def decode(self, ids: Any) -> np.ndarray:
        """uint8 ``[batch, height, width, 3]``: the colours of indices ``[batch, height * width]``, or of one such row.

        A row may begin with the start token, which is left out.

        Raises:
            RequestError: a row is not as long as a picture, or holds what is no colour.
        """
        colours, height, width = self.settings.colours(), self.settings.height, self.settings.width
        rows = self._pixel_rows(np.asarray(ids), height * width)
        wrong = rows[(rows < 0) | (rows >= len(colours))]
        if wrong.size:
            raise RequestError(f"a pixel must be one of the palette's 0..{len(colours) - 1}, got {wrong.flat[0]}")
        return colours[rows].reshape(len(rows), height, width, 3)

    def _pixel_rows(self, ids: np.ndarray, pixels: int) -> np.ndarray:
        """[batch, pixels] of ids as they were given."""
        rows = ids[None] if ids.ndim == 1 else ids
        if rows.ndim != 2 or rows.dtype.kind not in "iu":
            raise RequestError(f"ids must be whole numbers [batch, pixels] or [pixels], got {ids.dtype} {ids.shape}")
        if rows.shape[1] == pixels + 1 and (rows[:, 0] == self.start_token).all():
            rows = rows[:, 1:]
        if rows.shape[1] != pixels:
            height, width = self.settings.height, self.settings.width
            raise RequestError(f"a picture of {height} x {width} has {pixels} pixels, and ids has {rows.shape[1]}")
        return rows

    def _values(self, levels: np.ndarray) -> np.ndarray:
        """float32 of the same shape, [..., 3]."""
        return self._levels[levels, np.arange(3)]


def nearest(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """int64 ``[n]``: for each of ``values [n, 3]`` the lowest index of ``clusters [k, 3]`` at the least distance.

    |v - c|² without |v|², which is the same for all c, so that the work is one product of matrices in float64.
    """
    distances = (clusters**2).sum(1) - 2 * (values.astype(np.float64) @ clusters.T)  # [n, k]
    return np.argmax(distances <= distances.min(1, keepdims=True) + TIE, axis=1).astype(np.int64)
