"""One RGB picture to the tiles DeepSeek-VL2 sees, a global view and then local tiles; Pillow and numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from modelwright.configs.tiling import Size, tile_grid


@dataclass(frozen=True)
class Tiles:
    """The tiles of one picture.

    Attributes:
        pixels: float32 [1 + columns * rows, 3, S, S]: the global view, then the local tiles row by row.
        grid: (columns, rows) of the local tiles.
    """

    pixels: np.ndarray
    grid: Size


@dataclass(frozen=True)
class TileImageProcessor:
    """Cuts pictures into tiles as the official code does.

    Attributes:
        candidate_resolutions: (width, height) pairs a picture may be fitted to, multiples of ``image_size``.
        image_size: S, the side of a tile in pixels.
        mean, std: per channel, for pixels in 0..1; applied when ``normalize``.
    """

    candidate_resolutions: tuple[Size, ...]
    image_size: int
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    normalize: bool = True

    @property
    def pad_colour(self) -> tuple[int, int, int]:
        """What fills the border of a picture of another shape: the mean, so that it becomes (nearly) zero."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue

    def __call__(self, image: Image.Image, *, crop: bool = True) -> Tiles:
        """The tiles of an RGB picture; without ``crop`` the local grid is 1 x 1, the global view once more."""
        side = self.image_size
        columns, rows = self.grid(image.size, crop=crop)
        views = [pad_to(image, (side, side), self.pad_colour)]
        mosaic = pad_to(image, (columns * side, rows * side), self.pad_colour)
        for top in range(0, rows * side, side):
            views += [mosaic.crop((left, top, left + side, top + side)) for left in range(0, columns * side, side)]
        return Tiles(np.stack([self.to_array(view) for view in views]), (columns, rows))

    def grid(self, size: Size, *, crop: bool = True) -> Size:
        """(columns, rows) of the local tiles of a picture of ``size`` (width, height) pixels."""
        return tile_grid(size, self.candidate_resolutions, self.image_size) if crop else (1, 1)

    def blank(self) -> np.ndarray:
        """float32 [1, 3, S, S] of zeros: what a row without pictures carries."""
        return np.zeros((1, 3, self.image_size, self.image_size), np.float32)

    def to_array(self, view: Image.Image) -> np.ndarray:
        """float32 [3, S, S] of an RGB picture of S x S."""
        pixels = np.asarray(view, np.float32) / np.float32(255)  # [S, S, 3]
        if self.normalize:
            pixels = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return pixels.transpose(2, 0, 1)


def pad_to(image: Image.Image, size: Size, colour: tuple[int, int, int]) -> Image.Image:
    """``ImageOps.pad`` that also takes slivers, whose shorter side would shrink to no pixel at all."""
    if round(image.height / image.width * size[0]) == 0:
        image = image.resize((size[0], 1))
    elif round(image.width / image.height * size[1]) == 0:
        image = image.resize((1, size[1]))
    return ImageOps.pad(image, size, color=colour)
