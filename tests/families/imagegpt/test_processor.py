"""The ImageGPT processor against transformers' own (its Pillow backend), and where it takes more than that one does."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import BatchFeature, ImageGPTImageProcessorPil

import modelwright.processing as processing
from modelwright.errors import CheckpointError, ConfigError, RequestError
from modelwright.families.imagegpt.processor import ImageGPTImageProcessor

CORNERS = [[r, g, b] for r in (-1, 1) for g in (-1, 1) for b in (-1, 1)]


@pytest.fixture
def corners() -> ImageGPTImageProcessor:
    return ImageGPTImageProcessor(clusters=CORNERS, size={"height": 4, "width": 6})


def noise(seed: int, *sizes: tuple[int, int]) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@settings(max_examples=25, deadline=None)
@given(
    k=st.sampled_from([1, 2, 16, 31, 512]),
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    resample=st.sampled_from(list(Image.Resampling)),
    normalise=st.booleans(),
    whole=st.booleans(),
)
def test_ids_are_those_of_transformers(k, seed, size, resample, normalise, whole):
    generator = np.random.default_rng(seed)
    low = -1 if normalise else 0
    clusters = generator.uniform(low, 1, (k, 3))
    if whole:  # colours of 0..255, between which pixels may lie exactly halfway
        clusters = generator.integers(0, 256, (k, 3)) * (1 - low) / 255 + low
    how = {
        "clusters": clusters.tolist(),
        "size": dict(zip(("height", "width"), size, strict=True)),
        "resample": int(resample),
        "do_normalize": normalise,
    }
    pictures = noise(seed, (9, 14), (5, 5), (1, 30))
    theirs = ImageGPTImageProcessorPil(**how)(pictures, return_tensors="np")
    ours = ImageGPTImageProcessor(**how)(pictures, return_tensors="np")
    assert list(ours) == list(theirs) == ["input_ids"]
    assert ours["input_ids"].dtype == theirs["input_ids"].dtype == np.int64
    np.testing.assert_array_equal(ours["input_ids"], theirs["input_ids"])


def test_values_without_quantisation_are_those_of_transformers():
    how = {"size": {"height": 5, "width": 4}, "do_color_quantize": False, "image_mean": [0.4, 0.5, 0.6]}
    pictures = noise(1, (9, 14), (5, 5))
    theirs = ImageGPTImageProcessorPil(**how)(pictures, return_tensors="np")
    ours = ImageGPTImageProcessor(**how)(pictures, return_tensors="np")
    assert list(ours) == ["pixel_values"]
    np.testing.assert_array_equal(ours["pixel_values"], theirs["pixel_values"])
    assert ours["pixel_values"].dtype == np.float32


def test_files_are_read_in_both_directions(tmp_path):
    clusters = np.random.default_rng(0).uniform(-1, 1, (20, 3)).astype(np.float32)
    ours = ImageGPTImageProcessor(clusters=clusters, size=7, resample=3)
    assert ours.save_pretrained(tmp_path / "ours") == [str(tmp_path / "ours" / "preprocessor_config.json")]
    theirs = ImageGPTImageProcessorPil.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again = ImageGPTImageProcessor.from_pretrained(tmp_path / "theirs")
    pictures = noise(2, (30, 20), (7, 7))
    expected = theirs(pictures, return_tensors="np")["input_ids"]
    for processor in (ours, again, ImageGPTImageProcessor.from_pretrained(str(tmp_path / "ours"))):
        np.testing.assert_array_equal(processor(pictures, return_tensors="np")["input_ids"], expected)
    assert again.size == {"height": 7, "width": 7}
    assert again.clusters is not None and (again.clusters == clusters).all()
    assert (
        again.settings.write(tmp_path / "last").read_bytes()
        == (tmp_path / "ours" / "preprocessor_config.json").read_bytes()
    )


def test_tensors_come_as_asked_for(corners):
    picture = noise(3, (4, 6))[0]
    rows = corners(picture)
    assert isinstance(rows, BatchFeature)
    assert [type(row) for row in rows["input_ids"]] == [np.ndarray] and rows["input_ids"][0].shape == (24,)
    array, tensor = (corners(images=[picture] * 2, return_tensors=kind)["input_ids"] for kind in ("np", "pt"))
    assert (array.shape, array.dtype) == ((2, 24), np.int64)
    assert (tensor.shape, tensor.dtype) == ((2, 24), torch.int64)
    assert tensor.tolist() == array.tolist() == [rows["input_ids"][0].tolist()] * 2
    with pytest.raises(RequestError, match="return_tensors must be np, pt or None, got 'tf'"):
        corners(picture, return_tensors="tf")


def test_tensors_are_pictures_too(corners):
    picture = noise(4, (4, 6))[0]
    expected = corners(picture, return_tensors="np")["input_ids"]
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    halves = (tensor / 255).to(torch.float64).requires_grad_()
    for images in (tensor, tensor[None], [tensor], halves, tensor.float(), tensor.to(torch.bfloat16)):
        np.testing.assert_array_equal(corners(images, return_tensors="np")["input_ids"], expected)


def test_modes_orientation_and_transparency(corners):
    grey = Image.new("L", (6, 4), 200)
    deep = Image.fromarray(np.full((4, 6), 200 * 257, np.uint16))
    paletted = Image.new("RGB", (6, 4), (255, 0, 0)).quantize(4)
    clear = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    for picture, expected in ((grey, 7), (deep, 7), (paletted, 4), (clear, 7), (Image.new("LA", (6, 4), (0, 255)), 0)):
        assert corners(picture, return_tensors="np")["input_ids"].tolist() == [[expected] * 24], picture.mode
    sideways = Image.new("RGB", (4, 6), "black")
    sideways.paste("white", (0, 0, 2, 6))  # the left half: after a turn to the right, the upper half
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    sideways.save(file, "PNG", exif=exif)
    assert corners(file.getvalue(), return_tensors="np")["input_ids"].tolist() == [[7] * 12 + [0] * 12]


def test_decoding_shows_the_palette_and_takes_a_start_token(corners):
    ids = torch.tensor([[8, *range(8), *range(8), *range(8)]])
    with_start, without = corners.decode(ids)[0], corners.decode(ids[:, 1:])[0]
    assert with_start.size == (6, 4) and with_start.mode == "RGB"
    assert with_start.tobytes() == without.tobytes()
    assert with_start.getpixel((4, 0)) == (255, 0, 0)
    assert corners(with_start, return_tensors="pt")["input_ids"].tolist() == ids[:, 1:].tolist()


def test_settings_may_be_given_for_one_call(corners):
    picture = noise(5, (3, 3))[0]
    assert corners(picture, return_tensors="np", size=2)["input_ids"].shape == (1, 4)
    assert corners(picture, return_tensors="np", do_resize=False)["input_ids"].shape == (1, 9)
    blacks = corners(picture, return_tensors="np", clusters=torch.tensor([[-1.0, -1, -1]]))["input_ids"]
    assert blacks.tolist() == [[0] * 24]
    assert corners.size == {"height": 4, "width": 6}
    with pytest.raises(ConfigError, match="has no setting 'do_resise': did you mean do_resize"):
        corners(picture, do_resise=True)


def test_what_cannot_be_done_is_refused_with_the_rule(corners, tmp_path):
    with pytest.raises(RequestError, match="at least one picture"):
        corners([])
    with pytest.raises(RequestError, match=r"no such picture: nowhere\.png"):
        corners(["nowhere.png"])
    with pytest.raises(ConfigError, match="clusters must hold a palette"):
        ImageGPTImageProcessor(size=4)(noise(0, (2, 2)))
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        ImageGPTImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"/no/such/folder is not a folder here, and the hub has no preprocessor"):
        ImageGPTImageProcessor.from_pretrained("/no/such/folder")


def test_it_says_what_it_is(corners):
    assert repr(corners) == "ImageGPTImageProcessor(8 colours, 4 x 6 pixels)"
    assert repr(ImageGPTImageProcessor()) == "ImageGPTImageProcessor(no colours, 256 x 256 pixels)"


def test_the_rooms_names_are_lazy_listed_and_resolve():
    for name in processing.__all__:
        assert name in dir(processing)
        assert getattr(processing, name) is getattr(processing, name)
    with pytest.raises(AttributeError, match=r"'modelwright\.processing' has no attribute 'Palette'"):
        _ = processing.Palette  # pyright: ignore[reportAttributeAccessIssue]


def test_type_checkers_are_told_the_rooms_names():
    import ast
    from pathlib import Path

    stub = ast.parse(Path(f"{processing.__file__}i").read_text(encoding="utf-8")).body
    assert {alias.asname for node in stub if isinstance(node, ast.ImportFrom) for alias in node.names} == set(
        processing.__all__
    )
