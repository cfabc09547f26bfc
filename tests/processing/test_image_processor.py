"""Tiles: shape, order, padding and slivers; equality with the official pixels is in test_deepseek_vl2."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from modelwright.processing.image_processor import TileImageProcessor, pad_to

PROCESSOR = TileImageProcessor(((8, 8), (16, 8), (16, 16)), 8)


def test_the_global_view_comes_first_then_the_mosaic_row_by_row():
    picture = Image.new("RGB", (16, 16))
    for number, corner in enumerate([(0, 0), (8, 0), (0, 8), (8, 8)]):
        picture.paste((number * 80,) * 3, (*corner, corner[0] + 8, corner[1] + 8))
    tiles = PROCESSOR(picture)
    assert tiles.grid == (2, 2) and tiles.pixels.shape == (5, 3, 8, 8) and tiles.pixels.dtype == np.float32
    expected = np.array([0, 80, 160, 240], np.float32) / 255 * 2 - 1
    np.testing.assert_allclose(tiles.pixels[1:].mean((1, 2, 3)), expected, atol=1e-6)


def test_without_crop_the_local_tile_is_the_global_view():
    tiles = PROCESSOR(Image.effect_noise((32, 16), 60).convert("RGB"), crop=False)
    assert tiles.grid == (1, 1)
    np.testing.assert_array_equal(tiles.pixels[0], tiles.pixels[1])


def test_the_border_is_127_and_normalising_can_be_left_out():
    plain = TileImageProcessor(((8, 8),), 8, normalize=False)(Image.new("RGB", (8, 2), "white"))
    assert plain.pixels[0, 0, 0, 0] == np.float32(127 / 255) and plain.pixels.max() == 1


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (1, 1), (20000, 3)])
def test_slivers_keep_a_pixel(size):
    pixels = PROCESSOR(Image.new("RGB", size, "white")).pixels
    assert np.isfinite(pixels).all() and pixels[0].max() > 0.4


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60))
def test_padding_is_pillows_wherever_pillow_can(width, height):
    picture = Image.effect_noise((width, height), 90).convert("RGB")
    if round(height / width * 16) and round(width / height * 8):
        assert (
            pad_to(picture, (16, 8), (1, 2, 3)).tobytes() == ImageOps.pad(picture, (16, 8), color=(1, 2, 3)).tobytes()
        )
    assert pad_to(picture, (16, 8), (1, 2, 3)).size == (16, 8)
