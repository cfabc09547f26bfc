"""The arithmetic from a picture's size to the tiles and tokens that DeepSeek-VL2 makes of it; no pixels, no tensors."""

import math
from collections.abc import Sequence

Size = tuple[int, int]
"""(width, height), in pixels or in tiles."""


def select_best_resolution(image_size: Size, candidates: Sequence[Sequence[int]]) -> Size:
    """The candidate that keeps most of the picture's pixels; among equals the one that wastes least, then the first.

    Source: DeepSeek-VL2 paper, section 2.1 ("dynamic tiling").
    """
    width, height = image_size

    def merit(candidate: Sequence[int]) -> tuple[int, int]:
        scale = min(candidate[0] / width, candidate[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - candidate[0] * candidate[1]

    best = max(candidates, key=merit)
    return best[0], best[1]


def tile_grid(image_size: Size, candidates: Sequence[Sequence[int]], tile_size: int) -> Size:
    """(width, height) of the local tiles of a picture, each ``tile_size`` pixels square."""
    width, height = select_best_resolution(image_size, candidates)
    return width // tile_size, height // tile_size


def tile_count(grid: Size) -> int:
    """Tiles of one picture: its local grid and the one global view."""
    return 1 + grid[0] * grid[1]


def tile_side(image_size: int, patch_size: int, downsample_ratio: int) -> int:
    """Tokens along one side of a tile: whole patches, joined ``downsample_ratio`` at a time, the last group padded."""
    return math.ceil((image_size // patch_size) / downsample_ratio)


def image_token_count(grid: Size, side: int, tile_tag: str = "2D") -> int:
    """Placeholder tokens of one picture whose local tiles form ``grid`` and whose tiles are ``side`` tokens square.

    ``2D``: the global view and the mosaic of local tiles, a newline after each row, one separator between the two:
    h(w+1) + 1 + (th h)(tw w + 1). ``1D``: one indicator before each tile: (1 + tw th)(1 + h w).
    """
    columns, rows = grid
    if tile_tag == "1D":
        return tile_count(grid) * (1 + side * side)
    return side * (side + 1) + 1 + rows * side * (columns * side + 1)
