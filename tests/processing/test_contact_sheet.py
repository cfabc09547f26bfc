"""The contact sheet, pixel by pixel: where pictures stand, that they are squares of their colours, what is hatched."""

import numpy as np
import pytest
from PIL import Image

from modelwright.processing.contact_sheet import FRAME, GUTTER, HATCH, INK, LABEL, PAPER, contact_sheet


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def tile(sheet: Image.Image, column: int, row: int, height: int, width: int, step: int | None = None) -> np.ndarray:
    """The pixels inside the frame of a cell."""
    left = GUTTER + column * ((step or width + 2) + GUTTER) + 1
    top = GUTTER + row * (height + 2 + LABEL + GUTTER) + 1
    return np.asarray(sheet)[top : top + height, left : left + width]


def enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    return np.kron(picture, np.ones((factor, factor, 1), np.uint8))


def test_the_first_column_holds_the_original_and_what_was_kept():
    samples, original = noise(4, 16, 16), noise(16, 16)
    sheet = contact_sheet(samples, original, 6)
    assert sheet.mode == "RGB" and sheet.size == (3 * (162 + GUTTER) + GUTTER, 2 * (162 + LABEL + GUTTER) + GUTTER)
    assert (tile(sheet, 0, 0, 160, 160) == enlarged(original, 10)).all()
    kept = tile(sheet, 0, 1, 160, 160)
    assert (kept[:60] == enlarged(original[:6], 10)).all()
    assert {tuple(colour) for colour in kept[60:].reshape(-1, 3).tolist()} == set(HATCH)
    for place, sample in enumerate(samples):
        assert (tile(sheet, 1 + place % 2, place // 2, 160, 160) == enlarged(sample, 10)).all()


def test_without_an_original_there_are_samples_only():
    samples = noise(3, 8, 8)
    sheet = contact_sheet(samples, None, 0)
    assert sheet.size == (3 * (162 + GUTTER) + GUTTER, 162 + LABEL + 2 * GUTTER)
    for column, sample in enumerate(samples):
        assert (tile(sheet, column, 0, 160, 160) == enlarged(sample, 20)).all()


@pytest.mark.parametrize(
    ("count", "first", "columns", "rows"),
    [
        (1, True, 2, 2),
        (2, True, 2, 2),
        (3, True, 3, 2),
        (4, True, 3, 2),
        (9, True, 4, 3),
        (16, True, 5, 4),
        (1, False, 1, 1),
        (3, False, 3, 1),
        (4, False, 2, 2),
        (8, False, 4, 2),
    ],
)
def test_the_grid_is_about_square(count, first, columns, rows):
    sheet = contact_sheet(noise(count, 16, 16), noise(16, 16) if first else None, 8)
    assert sheet.size == (columns * (162 + GUTTER) + GUTTER, rows * (162 + LABEL + GUTTER) + GUTTER)


def test_frames_labels_and_marks():
    sheet = np.asarray(contact_sheet(noise(2, 16, 16), noise(16, 16), 8))
    step = 162 + GUTTER
    assert (sheet[GUTTER, GUTTER : GUTTER + 162] == FRAME).all()
    assert (sheet[:GUTTER] == PAPER).all() and (sheet[:, :6] == PAPER).all()
    for row in range(2):  # under each tile there are letters, in ink
        under = sheet[GUTTER + row * (162 + LABEL + GUTTER) + 162 :][:LABEL]
        for column in range(2):
            cell = under[:, GUTTER + column * step : (column + 1) * step]
            assert {tuple(colour) for colour in cell.reshape(-1, 3).tolist()} == {PAPER, INK}
    mark = GUTTER + 80  # where the eighth row ends
    assert (sheet[mark, GUTTER + step - 4 : GUTTER + step] == INK).all()
    assert (sheet[mark, GUTTER + 162 : GUTTER + 166] == PAPER).all()  # none beside the original


@pytest.mark.parametrize(("kept", "hatched"), [(0, HATCH), (16, ())])
def test_nothing_or_everything_kept(kept, hatched):
    original = noise(16, 16)
    below = tile(contact_sheet(noise(1, 16, 16), original, kept), 0, 1, 160, 160)
    assert (below[: kept * 10] == enlarged(original[:kept], 10)).all()
    assert {tuple(colour) for colour in below[kept * 10 :].reshape(-1, 3).tolist()} == (
        set(HATCH) if hatched else set()
    )


def test_large_and_narrow_pictures():
    large = noise(1, 200, 180)
    assert (tile(contact_sheet(large, None, 0), 0, 0, 200, 180) == large[0]).all()
    narrow = noise(2, 32, 2)
    sheet = contact_sheet(narrow, noise(32, 2), 4)  # columns are as wide as the longest label, "kept 4 of 32 rows"
    assert (tile(sheet, 1, 1, 160, 10, step=17 * 6) == enlarged(narrow[1], 5)).all()


def test_the_same_arguments_give_the_same_pixels_and_are_left_alone():
    samples, original = noise(2, 5, 7), noise(5, 7)
    before = samples.copy(), original.copy()
    assert contact_sheet(samples, original, 2).tobytes() == contact_sheet(samples, original, 2).tobytes()
    assert (samples == before[0]).all() and (original == before[1]).all()
