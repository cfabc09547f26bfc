"""The numpy core of ImageGPT's pixels: nearest colours, the way back, settings and their file; imports no torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modelwright.errors import CheckpointError, ConfigError, RequestError
from modelwright.processing import pixels as pixels_module
from modelwright.processing.pictures import as_pictures
from modelwright.processing.pixel_settings import FILE, PixelSettings
from modelwright.processing.pixels import Pixels, nearest

CORNERS = [[r, g, b] for r in (-1, 1) for g in (-1, 1) for b in (-1, 1)]
"""Black, blue, green, cyan, red, magenta, yellow, white."""


def made(**values) -> Pixels:
    return Pixels(PixelSettings().changed(**{"clusters": CORNERS, "size": {"height": 2, "width": 3}} | values))


def hub_file(folder, **values):
    (folder / FILE).write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_the_core_imports_no_torch():
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import modelwright.processing.pixels, modelwright.processing.palette, modelwright.processing.contact_sheet\n"
        "print(*[name for name in ('torch', 'transformers', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_a_picture_becomes_its_nearest_corners_in_raster_order_and_comes_back():
    levels = np.array(
        [[[[0, 9, 0], [0, 0, 200], [255, 0, 0]], [[255, 255, 0], [250, 250, 250], [128, 0, 128]]]], np.uint8
    )
    ids = made().encode(levels)
    assert ids.dtype == np.int64
    assert ids.tolist() == [[0, 1, 4, 6, 7, 5]]
    back = made().decode(ids)
    assert (back.shape, back.dtype) == ((1, 2, 3, 3), np.uint8)
    assert back[0, 0].tolist() == [[0, 0, 0], [0, 0, 255], [255, 0, 0]]
    assert made().encode(back).tolist() == ids.tolist()


def test_of_equally_near_colours_the_lowest_index_is_taken():
    twice = np.array([[0.5, 0.5, 0.5], [-0.5, 0.1, 0.3], [-0.5, 0.1, 0.3]])
    assert nearest(np.array([[-0.5, 0.1, 0.3]], np.float32), twice).tolist() == [1]
    turned = np.array([[0.1, 0.7, 0.3], [0.3, 0.1, 0.7], [0.7, 0.3, 0.1]])  # as far from every grey, but for rounding
    greys = np.repeat(np.linspace(-1, 1, 256, dtype=np.float32)[:, None], 3, axis=1)
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]):
        assert not nearest(greys, turned[order]).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.booleans())
def test_nearest_is_nearest_and_decoding_inverts_palette_colours(k, seed, whole):
    generator = np.random.default_rng(seed)
    colours = np.unique(generator.integers(0, 256, (k, 3), dtype=np.uint8), axis=0)
    clusters = colours / 127.5 - 1 if whole else generator.uniform(-1, 1, (k, 3))
    pixels = made(clusters=clusters.astype(np.float32))
    levels = generator.integers(0, 256, (2, 2, 3, 3), dtype=np.uint8)
    ids = pixels.encode(levels).reshape(2, 2, 3)
    distances = ((levels[..., None, :] / 127.5 - 1 - clusters) ** 2).sum(-1)  # the definition
    chosen = np.take_along_axis(distances, ids[..., None], -1)[..., 0]
    np.testing.assert_allclose(chosen, distances.min(-1), rtol=0, atol=1e-5)
    if whole:
        assert (pixels.settings.colours() == colours).all()
        picture = colours[generator.integers(0, len(colours), (1, 2, 3))]
        assert (pixels.decode(pixels.encode(picture)) == picture).all()


def test_memory_is_bounded_and_the_bound_changes_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    levels = generator.integers(0, 256, (3, 2, 3, 3), dtype=np.uint8)
    whole, seen = made().encode(levels), []

    def spy(values, clusters):
        seen.append(len(values) * len(clusters))
        return nearest(values, clusters)

    monkeypatch.setattr(pixels_module, "MAX_DISTANCES", 40)
    monkeypatch.setattr(pixels_module, "nearest", spy)
    assert (made().encode(levels) == whole).all()
    assert seen == [40, 40, 40, 24]
    monkeypatch.setattr(pixels_module, "MAX_DISTANCES", 1)  # fewer than one pixel's
    assert (made().encode(levels) == whole).all()


def test_values_are_those_of_the_paper():
    levels = np.arange(256, dtype=np.uint8)
    expected = levels / 127.5 - 1
    np.testing.assert_allclose(PixelSettings().levels()[:, 0], expected, rtol=0, atol=1.2e-7)
    values = made(do_color_quantize=False).values(np.zeros((1, 2, 3, 3), np.uint8))
    assert (values.shape, values.dtype) == ((1, 3, 2, 3), np.float32)
    assert (values == -1).all()


def test_settings_shift_levels_and_the_way_back():
    plain = PixelSettings().changed(do_normalize=False, clusters=[[0.0, 0.2, 1.0]])
    np.testing.assert_allclose(plain.levels()[[0, 51, 255], 0], [0, 0.2, 1])
    assert plain.colours().tolist() == [[0, 51, 255]]
    other = PixelSettings().changed(image_mean=[0.1, 0.2, 0.3], image_std=0.5, clusters=[[1.0, 0, -0.6]])
    assert other.colours().tolist() == [[153, 51, 0]]


def test_resizing_stretches_with_the_filter_asked_for():
    picture = Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3))
    for resample in Image.Resampling:
        fitted = made(resample=int(resample)).fit([picture])
        assert (fitted[0] == np.asarray(picture.resize((3, 2), resample))).all()
    assert made(do_resize=False).fit([picture]).shape == (1, 5, 7, 3)
    with pytest.raises(RequestError, match="without do_resize all pictures must have one size, got 7 x 5, 8 x 5"):
        made(do_resize=False).fit([picture, Image.new("RGB", (8, 5))])


def test_decode_leaves_out_a_start_token_and_refuses_what_is_no_picture():
    pixels = made()
    assert pixels.start_token == 8
    row = [7, 6, 5, 4, 3, 0]
    one = pixels.decode(row)
    assert one.shape == (1, 2, 3, 3)
    assert (pixels.decode([[8, *row], [8, *row]]) == one).all()
    for ids, rule in (
        ([[8, 1, 2]], "a picture of 2 x 3 has 6 pixels, and ids has 3"),
        ([[0, *row]], "a picture of 2 x 3 has 6 pixels, and ids has 7"),
        ([8, 1, 2, 3, 4, 5], r"a pixel must be one of the palette's 0\.\.7, got 8"),
        ([-1, 1, 2, 3, 4, 5], r"a pixel must be one of the palette's 0\.\.7, got -1"),
        ([0.5] * 6, r"ids must be whole numbers \[batch, pixels\] or \[pixels\], got float64 \(6,\)"),
    ):
        with pytest.raises(RequestError, match=rule):
            pixels.decode(ids)


def test_pixels_of_another_type_or_shape_are_refused():
    for levels in (np.zeros((1, 2, 3, 3)), np.zeros((2, 3, 3), np.uint8), np.zeros((1, 2, 3, 4), np.uint8)):
        with pytest.raises(RequestError, match=r"pixels must be uint8 \[batch, height, width, 3\], got"):
            made().encode(levels)


@pytest.mark.parametrize("size", [32, {"height": 32, "width": 32}, [32, 32]])
def test_a_hub_file_of_any_age_is_read(tmp_path, size):
    old = {"feature_extractor_type": "ImageGPTFeatureExtractor", "do_normalize": True, "do_resize": True, "resample": 2}
    read = PixelSettings.read(hub_file(tmp_path, clusters=CORNERS, size=size, **old))
    assert (read.height, read.width, read.resample) == (32, 32, 2)
    assert read.clusters is not None and read.clusters.tolist() == CORNERS
    assert Pixels.from_folder(tmp_path).start_token == 8


def test_what_is_written_is_read_again(tmp_path):
    first = PixelSettings().changed(
        clusters=np.random.default_rng(0).uniform(-1, 1, (5, 3)),
        size=(4, 6),
        resample=0,
        do_resize=False,
        image_std=0.4,
    )
    path = first.write(tmp_path / "new")
    again = PixelSettings.read(tmp_path / "new")
    assert again.clusters is not None and (again.clusters == first.clusters).all()
    assert again.write(tmp_path / "again").read_bytes() == path.read_bytes()
    assert PixelSettings.read(tmp_path / "new", size=9).size == {"height": 9, "width": 9}


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"clusters": [[1, 2], [3, 4]]}, r"clusters must have shape \[k, 3\] with at least one colour, got \[2, 2\]"),
        ({"clusters": []}, r"clusters must have shape \[k, 3\] with at least one colour, got \[0\]"),
        ({"clusters": [[0, 0, "red"]]}, r"clusters must be numbers of shape \[k, 3\]: could not convert"),
        ({"clusters": [[0, 128, 255]]}, r"clusters must lie in -1\.\.1, as pixels do, got 0\.\.255"),
        ({"clusters": [[0, float("nan"), 0]]}, r"clusters must lie in -1\.\.1, .*, got nan\.\.nan"),
        ({"image_std": 0.25, "clusters": [[-3, 0, 0]]}, r"clusters must lie in -2\.\.2, .*, got -3\.\.0"),
        ({"size": 0}, 'size must be {"height": h, "width": w}, a pair .* all at least 1; got 0'),
        ({"size": {"shortest_edge": 32}}, "size must be .* got {'shortest_edge': 32}"),
        ({"size": [1, 2, 3]}, r"size must be .* got \[1, 2, 3\]"),
        ({"size": {"height": 2.5, "width": 2}}, "size must be .* got"),
        ({"resample": 99}, r"resample must be one of 0 \(nearest\), 1 \(lanczos\), 2 \(bilinear\), .*; got 99"),
        ({"resample": "bilinear"}, "resample must be one of .*; got 'bilinear'"),
        ({"do_resize": "yes"}, "do_resize must be true or false, got 'yes'"),
        ({"do_color_quantize": 1}, "do_color_quantize must be true or false, got 1"),
        ({"rescale_factor": 0}, r"rescale_factor must be above 0, got 0\.0"),
        ({"rescale_factor": "1/255"}, "rescale_factor must hold finite numbers, got '1/255'"),
        (
            {"image_mean": [0.5, 0.5]},
            r"image_mean must be one number or one each for red, green and blue, got \[0.5, 0.5\]",
        ),
        ({"image_std": 0}, r"image_std \(\[0.0, 0.0, 0.0\]\) must be above 0: pixels are divided by it"),
        ({"do_rescale": False}, "do_rescale must be true for ImageGPTImageProcessor, got False"),
        ({"do_center_crop": True}, "do_center_crop must be false for ImageGPTImageProcessor, got True"),
        ({"image_processor_type": "ViTImageProcessor"}, "describes a ViTImageProcessor, not an ImageGPTImageProcessor"),
    ],
)
def test_a_broken_setting_is_refused_with_its_rule(tmp_path, values, rule):
    with pytest.raises(ConfigError, match=rule):
        PixelSettings.read(hub_file(tmp_path, **values))


def test_what_another_program_wrote_into_a_file_is_kept_and_listed(tmp_path):
    """The keys that transformers 4.57's fast processor writes, a misspelt one, and one of ours."""
    others = {"data_format": "channels_first", "crop_size": None, "default_to_square": True, "disable_grouping": None}
    file = hub_file(
        tmp_path,
        **others,
        clusters=CORNERS,
        size=4,
        do_convert_rgb=None,
        do_center_crop=None,
        clutsers=[[0, 0, 0]],
        image_processor_type="ImageGPTImageProcessorFast",
    )
    read = PixelSettings.read(file)
    assert (read.height, read.require_clusters().tolist()) == (4, CORNERS)
    none = "no setting of this processor"
    assert read.fields_without_effect() == {
        "data_format": none,
        "default_to_square": none,
        "clutsers": f'{none}; did you mean "clusters"?',
    }
    written = json.loads(read.changed(size=5).write(tmp_path / "new").read_text(encoding="utf-8"))
    assert {name: written[name] for name in others} == others
    assert PixelSettings.read(tmp_path / "new").fields_without_effect() == read.fields_without_effect()
    with pytest.raises(ConfigError, match=r"has no setting 'clutsers': did you mean clusters\?"):
        PixelSettings.read(file, clutsers=CORNERS)


def test_a_file_that_is_none_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match=f"has no {FILE}, which says how pictures become tokens"):
        PixelSettings.read(tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        PixelSettings.read(tmp_path)
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object, not a list"):
        PixelSettings.read(tmp_path)


def test_without_a_palette_nothing_is_quantised():
    bare = Pixels(PixelSettings().changed(clusters=None, size=1))
    for use in (
        lambda: bare.encode(np.zeros((1, 1, 1, 3), np.uint8)),
        lambda: bare.decode([0]),
        lambda: bare.start_token,
    ):
        with pytest.raises(ConfigError, match=r"clusters must hold a palette \[k, 3\] .*fit_clusters makes one"):
            use()


def test_a_palette_cannot_be_changed_by_accident():
    given = np.array(CORNERS, np.float64)
    palette = PixelSettings().changed(clusters=given).require_clusters()
    given[:] = 0
    assert palette.tolist() == CORNERS
    with pytest.raises(ValueError, match="read-only"):
        palette[0] = 0


def test_pictures_of_every_kind_become_rgb():
    red = np.zeros((7, 5, 3), np.uint8)
    red[..., 0] = 200
    kinds = {
        "HWC": red,
        "CHW": red.transpose(2, 0, 1),
        "batch": red[None],
        "batch CHW": red.transpose(2, 0, 1)[None],
        "int64": red.astype(np.int64),
        "float 0..255": red.astype(np.float32),
        "float 0..1": (red / 255).astype(np.float32),
        "uint16": red.astype(np.uint16) * 257,
        "opaque": np.concatenate([red, np.full((7, 5, 1), 255, np.uint8)], axis=2),
        "PIL": Image.fromarray(red),
        "nested": [[Image.fromarray(red)]],
    }
    for kind, images in kinds.items():
        (picture,) = as_pictures(images)
        assert picture.mode == "RGB", kind
        assert (np.asarray(picture) == red).all(), kind
    for grey in (red[..., 0], red[..., :1], red[None, ..., 0], red[None, ..., :1]):
        (picture,) = as_pictures(grey)
        assert np.asarray(picture)[0, 0].tolist() == [200, 200, 200]
    (clear,) = as_pictures(np.zeros((4, 5, 4), np.uint8))
    assert np.asarray(clear)[0, 0].tolist() == [255, 255, 255]
    (black_or_white,) = as_pictures(np.eye(5, dtype=bool))
    assert np.asarray(black_or_white)[0, :2].tolist() == [[255] * 3, [0] * 3]
    for shape, size in (((4, 5, 3), (5, 4)), ((3, 5, 4), (4, 5)), ((3, 5, 3), (3, 5)), ((4, 5, 4), (4, 5))):
        assert as_pictures(np.zeros(shape, np.uint8))[0].size == size  # where both ends could be channels
    assert len(as_pictures([red, [red[None].repeat(3, 0), (Image.new("L", (2, 2)),)]])) == 5


@pytest.mark.parametrize(
    ("images", "rule"),
    [
        ([], "there must be at least one picture, got none"),
        ([[], ()], "there must be at least one picture, got none"),
        (np.zeros((0, 4, 5, 3)), r"a batch of pictures must hold at least one, got shape \[0, 4, 5, 3\]"),
        (np.zeros(5), r"an array must be \[H, W\], .* with 1, 3 or 4 channels C, got shape \[5\]"),
        (np.zeros((2, 4, 5)), r"got shape \[2, 4, 5\]"),
        (np.zeros((1, 1, 4, 5, 3)), r"got shape \[1, 1, 4, 5, 3\]"),
        (np.zeros((4, 0, 3)), r"a picture must have pixels, got shape \[4, 0, 3\]"),
        (np.full((4, 5), 256), r"must lie in 0\.\.1 or 0\.\.255, got 256\.\.256"),
        (np.full((4, 5), -0.5), r"must lie in 0\.\.1 or 0\.\.255, got -0\.5\.\.-0\.5"),
        (np.full((4, 5), np.nan), r"must lie in 0\.\.1 or 0\.\.255, got nan\.\.nan"),
        (np.array([["a"]]), "the values of a picture must be numbers, got <U1"),
        (7, "a picture must be a PIL image, a path, bytes, a numpy array or a torch tensor, not int"),
        (None, "not NoneType"),
        ([[1, 2], [3, 4]], "not int"),
        (b"GIF?", "picture bytes is not a picture that can be read"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_rule(images, rule):
    with pytest.raises(RequestError, match=rule):
        as_pictures(images)
