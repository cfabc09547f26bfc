"""The arrangement of tiles against slow loops over rows and columns, its row count against the processor's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelwright.configs.tiling import image_token_count
from modelwright.families.deepseek_vl2.tiles import TileRows, picture_rows

DIM = 2
grids = st.tuples(st.integers(1, 3), st.integers(1, 3))
sides = st.integers(1, 3)


def numbered(tiles: int, side: int) -> torch.Tensor:
    """Features ``[tiles, side * side, DIM]``, every number different."""
    return torch.arange(float(tiles * side * side * DIM)).reshape(tiles, side * side, DIM)


def two_dimensional(global_first: bool) -> TileRows:
    return TileRows("2D", global_first, newline=torch.tensor([-1.0, -1.0]), separator=torch.tensor([-2.0, -2.0]))


@given(grids, sides, st.booleans())
def test_2d_is_the_global_view_and_one_mosaic(crop, side, global_first):
    tw, th = crop
    features = numbered(1 + tw * th, side)
    rows = two_dimensional(global_first)
    assert rows.newline is not None and rows.separator is not None
    overview = []
    for y in range(side):
        overview += [features[0, y * side + x] for x in range(side)] + [rows.newline]
    mosaic = []
    for y in range(th * side):
        for x in range(tw * side):
            tile = 1 + (y // side) * tw + x // side
            mosaic.append(features[tile, (y % side) * side + x % side])
        mosaic.append(rows.newline)
    parts = [*overview, rows.separator, *mosaic] if global_first else [*mosaic, rows.separator, *overview]
    assert torch.equal(picture_rows(features, crop, rows), torch.stack(parts))


@given(grids, sides, st.booleans())
def test_1d_puts_each_tiles_indicator_before_it(crop, side, global_first):
    tiles = 1 + crop[0] * crop[1]
    features, indicators = numbered(tiles, side), -1 - torch.arange(float(DIM * 12)).reshape(12, DIM)
    order = [*range(tiles)] if global_first else [*range(1, tiles), 0]
    parts = []
    for tile in order:
        parts += [indicators[tile], *features[tile]]
    rows = TileRows("1D", global_first, indicators=indicators)
    assert torch.equal(picture_rows(features, crop, rows), torch.stack(parts))


@pytest.mark.parametrize("tile_tag", ["2D", "1D"])
@given(grids, sides, st.booleans())
def test_the_processor_counts_as_many_rows(tile_tag, crop, side, global_first):
    features = numbered(1 + crop[0] * crop[1], side)
    rows = two_dimensional(global_first)
    if tile_tag == "1D":
        rows = TileRows("1D", global_first, indicators=torch.zeros(10, DIM))
    assert len(picture_rows(features, crop, rows)) == image_token_count(crop, side, tile_tag)


def test_gradients_reach_features_and_learned_rows():
    newline, separator = torch.zeros(DIM, requires_grad=True), torch.zeros(DIM, requires_grad=True)
    features = numbered(3, 2).requires_grad_()
    rows = TileRows("2D", True, newline=newline, separator=separator)
    picture_rows(features, (2, 1), rows).sum().backward()
    assert features.grad is not None and features.grad.eq(1).all()
    assert newline.grad is not None and newline.grad.tolist() == [4, 4]  # two rows of the overview, two of the mosaic
    assert separator.grad is not None and separator.grad.tolist() == [1, 1]
