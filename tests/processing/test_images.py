"""Every kind of source and every kind of bad picture."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelwright.errors import RequestError
from modelwright.processing.images import MAX_PIXELS, load_image


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height pixels, in a few bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def test_all_sources_give_the_same_picture(tmp_path: Path, red):
    data = encoded(red)
    path = tmp_path / "red.png"
    path.write_bytes(data)
    stream = io.BytesIO(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), data, bytearray(data), url, stream, red):
        image = load_image(source)
        assert (image.mode, image.size, image.getpixel((3, 3))) == ("RGB", (100, 50), (255, 0, 0))
    assert not stream.closed


def test_what_is_handed_in_is_not_the_thing_handed_out(red):
    load_image(red).putpixel((0, 0), (0, 0, 0))
    assert red.getpixel((0, 0)) == (255, 0, 0)


def test_exif_orientation_turns_the_picture():
    image = Image.new("RGB", (4, 2), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert load_image(encoded(image, "JPEG", exif=exif)).size == (2, 4)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored():
    data = encoded(Image.new("RGB", (4, 2)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert load_image(data).size == (4, 2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_becomes_white(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 255, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image = image.convert(mode)
    assert load_image(image).getpixel((0, 0)) == (255, 255, 255)


def test_a_transparent_palette_entry_becomes_white():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    loaded = load_image(encoded(image, "PNG", transparency=0))
    assert [loaded.getpixel((0, 0)), loaded.getpixel((1, 0))] == [(255, 255, 255), (40, 50, 60)]


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16", "RGBX", "RGBA", "LA", "PA", "RGBa", "key"],
)
def test_a_picture_made_in_strips_is_the_one_made_whole(mode, monkeypatch):
    noise = np.random.default_rng(3).integers(0, 256, (23, 17, 4), np.uint8)
    image = Image.fromarray(noise, "RGBA")
    if mode in ("I", "F", "I;16"):
        image = Image.fromarray(noise[..., 0].astype({"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]) * 257)
    elif mode in ("LA", "PA"):
        image = image.convert("LA").convert(mode)
    elif mode in ("P", "key"):
        image = image.convert("RGB").quantize()
        image.info["transparency"] = 3 if mode == "key" else bytes(range(256))
    elif mode == "LAB":
        image = Image.fromarray(noise[..., :3], "LAB")
    elif mode != "RGBA":
        image = image.convert(mode if mode == "RGBa" else "RGB").convert(mode)
    whole = load_image(image)
    monkeypatch.setattr("modelwright.processing.images._STRIP", 40)
    np.testing.assert_array_equal(np.asarray(load_image(image)), np.asarray(whole))
    assert load_image(image).size == (17, 23)


def test_every_value_of_16_bits_is_rounded_to_8():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.floor(values.astype(np.float64) / 257 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(load_image(Image.fromarray(values)))[..., 0], expected)
    wide = values.astype(np.int32) * 2 - 40_000
    expected = np.floor(np.clip(wide, 0, 65535) / 257 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(load_image(Image.fromarray(wide)))[..., 0], expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16", "RGBX"])
def test_any_mode_becomes_rgb(mode):
    assert load_image(Image.new(mode, (3, 2))).mode == "RGB"


def test_sixteen_bit_greyscale_is_scaled():
    values = np.array([[0, 257 * 128, 65535]], np.uint16)
    loaded = np.asarray(load_image(encoded(Image.fromarray(values))))
    assert loaded[0, :, 0].tolist() == [0, 128, 255]


def test_wide_integers_of_eight_bits_are_taken_as_they_are():
    assert np.asarray(load_image(Image.fromarray(np.array([[0, 200]], np.int32))))[0, :, 0].tolist() == [0, 200]


def test_floats_of_the_unit_range_are_scaled():
    assert np.asarray(load_image(Image.fromarray(np.array([[0, 1]], np.float32))))[0, :, 0].tolist() == [0, 255]


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("width", "height"), [(13000, 13000), (60000, 60000)])
def test_a_bomb_is_refused_from_its_header(tmp_path: Path, recwarn, width, height):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(width, height))
    with pytest.raises(RequestError, match=rf"bomb\.png is too large: .*{MAX_PIXELS}"):
        load_image(path)
    assert not recwarn.list


def test_both_sizes_are_named():
    with pytest.raises(RequestError, match="picture is too large: 100 x 50 = 5000 pixels, at most 4999"):
        load_image(Image.new("RGB", (100, 50)), max_pixels=4999)


def test_bad_sources_are_one_sentence(tmp_path: Path, red):
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    whole = encoded(Image.effect_noise((64, 64), 50))
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole[: len(whole) // 2])
    for source, message in (
        (tmp_path / "none.png", r"no such picture: .*none\.png"),
        (tmp_path, "cannot open the picture"),
        ("\0", "cannot open the picture"),
        (text, r"notes\.txt is not a picture that can be read"),
        (cut, r"cut\.png is damaged or cut short"),
        (b"", "picture bytes is not a picture"),
        ("https://example.com/a.png", r"not fetched from the network \(https://example.com/a.png\)"),
        ("data:image/png;base64", "a data: URL must read"),
        ("data:image/png,abc", "data URL is not a picture"),
        ("data:image/png;base64,a!b", "not valid base64"),
        ("data:image/png;base64,aGk=", "data URL is not a picture"),
        (Image.new("RGB", (0, 5)), "picture has no pixels: it is 0 x 5"),
        (17, "not int"),
    ):
        with pytest.raises(RequestError, match=message):
            load_image(source)
