"""One picture that shows what was kept of another and how it was completed; knows neither models nor palettes."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = 160
"""Pictures are enlarged by the largest whole factor that keeps their longer side within this many pixels."""
GUTTER = 10
LABEL = 16
"""Height of the line under each tile."""
PAPER, INK, FRAME = (252, 252, 250), (70, 70, 70), (190, 190, 188)
HATCH = ((236, 236, 233), (218, 218, 214))
"""The two greys of the stripes where nothing was kept."""


def contact_sheet(samples: np.ndarray, original: np.ndarray | None, kept_rows: int) -> Image.Image:
    """The original above what was kept of it, and the samples to the right; the same arguments give the same pixels.

    Every picture is enlarged by a whole factor without smoothing and stands in a thin frame above its label. Rows that
    were not kept are hatched; a mark on both sides of each sample shows where it was continued.

    Args:
        samples: uint8 ``[n, height, width, 3]``, n at least 1.
        original: uint8 ``[height, width, 3]``; None leaves the first column out.
        kept_rows: rows of the original, from the top, that every sample begins with.
    """
    count, height, width, _ = samples.shape
    factor = max(1, TILE // max(height, width))
    first = [] if original is None else _first_column(original, kept_rows, factor)
    tiles = [(_enlarge(sample, factor), f"sample {number}") for number, sample in enumerate(samples, 1)]
    rows = max(len(first), math.isqrt(count))
    columns = math.ceil(count / rows)
    left = 1 if first else 0
    cells = {(0, row): tile for row, tile in enumerate(first)}
    cells |= {(left + place % columns, place // columns): tile for place, tile in enumerate(tiles)}
    sheet = _Sheet(columns + left, rows, width * factor, height * factor, [label for _, label in first + tiles])
    for (column, row), (tile, label) in cells.items():
        mark = kept_rows * factor if 0 < kept_rows < height and column >= left else None
        sheet.put(column, row, tile, label, mark)
    return sheet.image


def _first_column(original: np.ndarray, kept_rows: int, factor: int) -> list[tuple[np.ndarray, str]]:
    height = len(original)
    kept = _hatched(height * factor, original.shape[1] * factor)
    kept[: kept_rows * factor] = _enlarge(original[:kept_rows], factor)
    return [(_enlarge(original, factor), "original"), (kept, f"kept {kept_rows} of {height} rows")]


def _enlarge(picture: np.ndarray, factor: int) -> np.ndarray:
    """[h, w, 3] to [h * factor, w * factor, 3], each pixel a square."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _hatched(height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3] of diagonal stripes, four pixels each."""
    stripe = (np.arange(height)[:, None] + np.arange(width)) // 4 % 2  # [height, width]
    return np.array(HATCH, np.uint8)[stripe]


class _Sheet:
    """Cells of one size, filled one by one."""

    def __init__(self, columns: int, rows: int, width: int, height: int, labels: list[str]):
        self._font = ImageFont.load_default_imagefont()  # ships inside Pillow, so that the sheet is the same everywhere
        widest = max(math.ceil(self._font.getlength(label)) for label in labels)
        self._width, self._height = width, height
        self._step = max(width + 2, widest) + GUTTER, height + 2 + LABEL + GUTTER
        self.image = Image.new("RGB", (columns * self._step[0] + GUTTER, rows * self._step[1] + GUTTER), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def put(self, column: int, row: int, tile: np.ndarray, label: str, mark: int | None) -> None:
        """Place a tile in its frame, its label below, and a mark beside it ``mark`` pixels from its top."""
        left, top = GUTTER + column * self._step[0], GUTTER + row * self._step[1]
        right, bottom = left + self._width + 1, top + self._height + 1
        self._draw.rectangle((left, top, right, bottom), outline=FRAME)
        self.image.paste(Image.fromarray(tile), (left + 1, top + 1))
        self._draw.text((left, bottom + 4), label, INK, self._font)
        if mark is not None:
            for start in (left - 4, right + 1):
                self._draw.line((start, top + mark, start + 3, top + mark), INK)
