"""Resolution choice against the reference, and the counts against their formula."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from modelwright.configs.tiling import (
    image_token_count,
    select_best_resolution,
    tile_count,
    tile_grid,
    tile_side,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "processor"
OFFICIAL = [(m * 384, n * 384) for m in range(1, 10) for n in range(1, 10) if m * n <= 9]


def test_the_best_resolution_is_the_official_one():
    reference = json.loads((GOLDEN / "best_resolution.json").read_text())
    candidates = reference["candidate_resolutions"]
    assert [select_best_resolution(tuple(size), candidates) for size, _ in reference["cases"]] == [
        tuple(best) for _, best in reference["cases"]
    ]


def test_counts():
    assert tile_side(384, 14, 2) == 14  # 27 patches, padded to 28
    assert tile_side(56, 14, 2) == 2
    assert image_token_count((1, 1), 2) == 13
    assert image_token_count((4, 1), 2) == 25
    assert image_token_count((1, 1), 14) == 210 + 1 + 210
    assert image_token_count((2, 3), 2, "1D") == 7 * 5
    assert tile_count((2, 3)) == 7


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_any_size_gets_a_grid_of_at_most_nine_tiles(width, height):
    columns, rows = tile_grid((width, height), OFFICIAL, 384)
    assert 1 <= columns * rows <= 9


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 28))
def test_2d_counts_rows_newlines_and_one_separator(columns, rows, side):
    global_view = sum(side + 1 for _ in range(side))
    mosaic = sum(columns * side + 1 for _ in range(rows * side))
    assert image_token_count((columns, rows), side) == global_view + 1 + mosaic
