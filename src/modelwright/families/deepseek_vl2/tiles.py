"""The order in which a picture's tiles become rows of the language model (arXiv:2412.10302, section 2).

Features are ``[1 + tw * th, tokens, dim]``: the global view, then the local tiles row by row; ``tokens`` is a square.
Which tokens of the prompt the rows replace is not known here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TileRows:
    """The learned rows that stand between features, and the two switches of the layout.

    ``newline`` and ``separator`` are ``[dim]`` and serve the 2D layout; ``indicators`` ``[tiles, dim]`` serves 1D.
    """

    tile_tag: str
    global_first: bool
    newline: Tensor | None = None
    separator: Tensor | None = None
    indicators: Tensor | None = None


def picture_rows(features: Tensor, crop: tuple[int, int], rows: TileRows) -> Tensor:
    """All rows of one picture, ``[rows, dim]``, in the configured layout; ``crop`` is ``(tw, th)``."""
    if rows.tile_tag == "1D":
        assert rows.indicators is not None
        return arrange_1d(features, rows.indicators, rows.global_first)
    assert rows.newline is not None and rows.separator is not None
    return arrange_2d(features, crop, rows.newline, rows.separator, rows.global_first)


def arrange_2d(
    features: Tensor, crop: tuple[int, int], newline: Tensor, separator: Tensor, global_first: bool
) -> Tensor:
    """The global view, a separator, and the local tiles as one mosaic; a newline ends every row of both."""
    tw, th = crop
    side = math.isqrt(features.shape[1])
    overview = features[0].unflatten(0, (side, side))  # [side, side, dim]
    tiles = features[1:].unflatten(0, (th, tw)).unflatten(2, (side, side))  # [th, tw, side, side, dim]
    mosaic = tiles.transpose(1, 2).reshape(th * side, tw * side, -1)
    parts = [_with_newlines(overview, newline), separator[None], _with_newlines(mosaic, newline)]
    return torch.cat(parts if global_first else parts[::-1])


def arrange_1d(features: Tensor, indicators: Tensor, global_first: bool) -> Tensor:
    """Each tile behind its own indicator row, number 0 being the global view."""
    marks = indicators[: len(features), None]  # [tiles, 1, dim]
    marked = torch.cat((marks, features), dim=1)
    ordered = marked if global_first else torch.cat((marked[1:], marked[:1]))
    return ordered.flatten(0, 1)


def _with_newlines(grid: Tensor, newline: Tensor) -> Tensor:
    """``[height, width, dim]`` to ``[height * (width + 1), dim]``."""
    ends = newline.expand(grid.shape[0], 1, -1)
    return torch.cat((grid, ends), dim=1).flatten(0, 1)
