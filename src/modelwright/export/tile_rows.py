"""A picture's tiles to rows of the language model, with numpy alone; the family's ``tiles.py`` uses torch."""

import math
from dataclasses import dataclass

import numpy as np

from modelwright.errors import RequestError

Crop = tuple[int, int]
"""The local tiles of one picture: columns and rows."""


@dataclass(frozen=True)
class TileLayout:
    """The order of a model's rows: its ``tile_tag`` and ``global_view_pos``, and the learned rows between features.

    ``marks`` are ``[2, dim]`` with the 2D layout (newline, separator), ``[1 + most tiles, dim]`` with the 1D one.
    """

    tile_tag: str
    global_view_pos: str
    marks: np.ndarray

    def rows(self, features: np.ndarray, crop: Crop) -> np.ndarray:
        """``[1 + columns * rows, tokens, dim]``, the global view first, to all rows of the picture ``[rows, dim]``."""
        return self._in_line(features) if self.tile_tag == "1D" else self._mosaic(features, crop)

    def _in_line(self, features: np.ndarray) -> np.ndarray:
        """Each tile behind its own indicator, number 0 being the global view's."""
        if len(features) > len(self.marks):
            raise RequestError(f"a picture has {len(features)} tiles, and the model knows {len(self.marks)} at most")
        marked = np.concatenate((self.marks[: len(features), None], features), axis=1)
        ordered = marked if self.global_view_pos == "head" else np.concatenate((marked[1:], marked[:1]))
        return ordered.reshape(-1, features.shape[-1])

    def _mosaic(self, features: np.ndarray, crop: Crop) -> np.ndarray:
        """The global view, a separator, and the local tiles as one picture; a newline ends every line of both."""
        columns, lines = crop
        side, dim = math.isqrt(features.shape[1]), features.shape[2]
        tiles = features[1:].reshape(lines, columns, side, side, dim).transpose(0, 2, 1, 3, 4)
        whole = self._with_newlines(features[0].reshape(side, side, dim))
        local = self._with_newlines(tiles.reshape(lines * side, columns * side, dim))
        parts = [whole, self.marks[1:2], local]
        return np.concatenate(parts if self.global_view_pos == "head" else parts[::-1])

    def _with_newlines(self, grid: np.ndarray) -> np.ndarray:
        """``[height, width, dim]`` to ``[height * (width + 1), dim]``."""
        ends = np.broadcast_to(self.marks[0], (len(grid), 1, grid.shape[-1]))
        return np.concatenate((grid, ends), axis=1).reshape(-1, grid.shape[-1])
