"""Palettes from pictures: k-means' error, what is deterministic, and what is refused."""

import sys

import numpy as np
import pytest
from PIL import Image

from modelwright.errors import ConfigError, RequestError
from modelwright.families.imagegpt.processor import ImageGPTImageProcessor
from modelwright.processing import fit_clusters, palette


def noise(seed: int, *sizes: tuple[int, int]) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def test_as_many_colours_as_there_are_come_back_exactly_darkest_first():
    picture = Image.new("RGB", (3, 1))
    for x, colour in enumerate([(255, 0, 0), (0, 10, 0), (0, 0, 255)]):
        picture.putpixel((x, 0), colour)
    clusters = fit_clusters([picture, Image.new("L", (9, 2), 255)], 4)
    assert (clusters.shape, clusters.dtype) == ((4, 3), np.float32)
    colours = np.array([[0, 10, 0], [0, 0, 255], [255, 0, 0], [255, 255, 255]])
    np.testing.assert_allclose(clusters, colours / 127.5 - 1, rtol=0, atol=1e-7)
    processor = ImageGPTImageProcessor(clusters=clusters, size={"height": 1, "width": 3})
    ids = processor(picture, return_tensors="np")["input_ids"]
    assert ids.tolist() == [[2, 0, 1]]
    assert processor.decode(ids)[0].tobytes() == picture.tobytes()


@pytest.mark.slow
def test_each_pixel_counts_once():
    """One white and three black pixels have one centre, a quarter of the way up."""
    clusters = fit_clusters([Image.new("L", (1, 1), 255), Image.new("L", (3, 1), 0)], 1)
    np.testing.assert_allclose(clusters, [[0.25 * 2 - 1] * 3], rtol=0, atol=1e-6)


def test_the_same_seed_gives_the_same_palette_in_order():
    pictures = noise(0, (20, 30), (7, 9), (50, 4))
    first = fit_clusters(pictures, 12, seed=1)
    assert (first == fit_clusters(pictures, 12, seed=1)).all()
    assert first.shape == (12, 3) and (np.abs(first) <= 1).all()
    brightness = first.astype(np.float64).sum(1)
    assert (np.diff(brightness) > -1e-6).all()


def test_it_does_better_than_an_even_grid():
    """Two dense clouds of colours, which a palette fitted to them must serve better than the corners of the cube."""
    generator = np.random.default_rng(0)
    clouds = np.concatenate([generator.normal(60, 15, (800, 3)), generator.normal(190, 15, (800, 3))])
    levels = np.clip(clouds, 0, 255).astype(np.uint8).reshape(40, 40, 3)
    values = levels.reshape(-1, 1, 3) / 127.5 - 1

    def error(clusters: np.ndarray) -> float:
        return float(((values - clusters) ** 2).sum(-1).min(1).mean())

    corners = np.array([[r, g, b] for r in (-0.5, 0.5) for g in (-0.5, 0.5) for b in (-0.5, 0.5)])
    assert error(fit_clusters(levels, 8)) < 0.7 * error(corners)


def test_large_pictures_and_many_colours_are_bounded(monkeypatch):
    monkeypatch.setattr(palette, "MAX_PIXELS_EACH", 64)
    monkeypatch.setattr(palette, "MAX_COLOURS", 40)
    seen = []

    def spy(colours, counts, k, seed):
        seen.append((colours, counts))
        return colours[:k]

    monkeypatch.setattr(palette, "_k_means", spy)
    (large,) = noise(0, (64, 32))
    shrunk = palette._shrunk(large)
    assert shrunk.size == (6, 11)  # by 6, the least that leaves about 64 pixels
    fit_clusters(large, 3)
    [(colours, counts)] = seen
    assert 5 <= len(colours) <= 40  # the 66 colours there are, divided by at most 8 at the last step
    assert counts.sum() == 66
    np.testing.assert_allclose(counts @ colours, np.asarray(shrunk).reshape(-1, 3).sum(0))


def test_merging_keeps_what_few_colours_are(monkeypatch):
    colours, counts = np.array([[0, 0, 0], [1, 1, 1], [9, 9, 9]], np.uint8), np.array([3, 1, 5])
    for most, expected in ((3, [[0] * 3, [1] * 3, [9] * 3]), (2, [[0.25] * 3, [9] * 3]), (1, [[46 / 9] * 3])):
        monkeypatch.setattr(palette, "MAX_COLOURS", most)
        merged, sums = palette._merged(colours, counts)
        np.testing.assert_allclose(merged, expected)
        assert sums.sum() == 9


@pytest.mark.parametrize("k", [0, -1, 2.5, True, None, 8193])
def test_k_must_be_a_whole_number(k):
    with pytest.raises(RequestError, match=f"k must be a whole number from 1 to 8192, got {k}"):
        fit_clusters(noise(0, (2, 2)), k)


def test_more_colours_than_the_pictures_hold_are_refused():
    with pytest.raises(
        RequestError, match=r"k \(5\) must be at most the number of distinct colours in the pictures \(1\)"
    ):
        fit_clusters(Image.new("RGB", (9, 9)), 5)
    with pytest.raises(RequestError, match="at least one picture"):
        fit_clusters([], 5)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ConfigError, match=r"fit_clusters needs scikit-learn: pip install modelwright\[palette\]"):
        fit_clusters(noise(0, (4, 4)), 3)
