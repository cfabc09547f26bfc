"""Pictures of requests: what is taken looks as it was sent, and what is not is refused before it costs anything."""

import asyncio
import base64
import io
import os
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelwright.errors import ConfigError
from modelwright.processing.data_urls import DataUrl
from modelwright.processing.images import load_image
from modelwright.processing.templates import Rendering
from modelwright.server import picture_bytes, pictures
from modelwright.server.pictures import PictureReader, PictureSource
from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError

WHERE = "messages[0].content[1]"


def encode(image, kind="PNG", **options):
    with io.BytesIO() as stream:
        image.save(stream, kind, **options)
        return stream.getvalue()


def data_url(encoded, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(encoded).decode()}"


def source(url, detail=None, where=WHERE):
    return PictureSource(url, detail, where)


def read(*sources, fetcher=None, **settings):
    async def run():
        reader = PictureReader(ServerSettings(**settings), fetcher)
        try:
            return await reader.read(sources)
        finally:
            reader.close()

    return asyncio.run(run())


def refusal(*sources, **settings):
    with pytest.raises(ApiError) as caught:
        read(*sources, **settings)
    error = caught.value
    assert error.param == WHERE
    for told in ("0x", " /", "Traceback", "BytesIO", "Error"):
        assert told not in error.message
    return error


def stripes(size=(40, 24)):
    """A picture of which no two corners are alike."""
    width, height = size
    x, y = np.meshgrid(np.arange(width) * 255 // width, np.arange(height) * 255 // height)
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def huge_png(side):
    """A PNG of side x side black pixels, one bit each, in about a thousandth of its bytes."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer = zlib.compressobj(9)
    row = bytes(1 + -(-side // 8))
    pixels = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def memory():
    """Bytes of this process in memory, now and at most so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")]


def made(kind):
    """An encoded picture, and the picture it shows."""
    image = stripes()
    alpha = Image.linear_gradient("L").resize(image.size)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "PNG": lambda: encode(image),
        "JPEG": lambda: encode(image, "JPEG", quality=95),
        "WEBP": lambda: encode(image, "WEBP", lossless=True),
        "GIF": lambda: encode(image.quantize(), "GIF", save_all=True, append_images=[Image.new("P", image.size)]),
        "RGBA": lambda: encode(Image.merge("RGBA", [*image.split(), alpha])),
        "P": lambda: encode(image.quantize()),
        "L": lambda: encode(image.convert("L")),
        "16-bit": lambda: encode(Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)),
        "EXIF": lambda: encode(image, "JPEG", quality=95, exif=exif),
        "CMYK": lambda: encode(image.convert("CMYK"), "JPEG", quality=95),
        "MPO": lambda: encode(image, "MPO", quality=95, save_all=True, append_images=[image]),
    }[kind]()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "RGBA", "P", "L", "16-bit", "EXIF", "CMYK", "MPO"])
def test_row_13_pictures_are_what_load_image_makes_of_them(kind):
    encoded = made(kind)
    (picture,) = read(source(data_url(encoded), "low"))
    expected = load_image(encoded)
    size = (24, 40) if kind == "EXIF" else (40, 24)
    assert (picture.size, picture.image.size, picture.image.mode, picture.detail) == (size, size, "RGB", "low")
    np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(expected))
    if kind in ("PNG", "WEBP"):
        np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(stripes()))
    assert picture.part == {"type": "image", "image": picture.image, "detail": "low"}


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "RGBA", "P", "L", "16-bit", "EXIF", "CMYK"])
def test_row_13_a_prompt_takes_them_as_it_takes_what_was_sent(processor, kind):
    (picture,) = read(source(data_url(made(kind))))
    sent = {"type": "image", "image": made(kind)}
    got, expected = (
        processor.process_messages([{"role": "user", "content": [part, {"type": "text", "text": "?"}]}], Rendering())
        for part in (picture.part, sent)
    )
    assert got.num_image_tokens == expected.num_image_tokens and got.input_ids.tolist() == expected.input_ids.tolist()
    np.testing.assert_array_equal(got.images, expected.images)


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (16_384, 1)])
def test_row_18_slivers_are_taken(size):
    assert read(source(data_url(encode(Image.new("RGB", size)))))[0].size == size


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_row_18_a_picture_of_too_many_pixels_is_refused_by_its_header():
    encoded = huge_png(13_000)
    assert len(encoded) < 25_000
    read(source(data_url(encode(stripes()))))  # plugins are imported, threads have begun
    before, highest = memory()
    error = refusal(source(data_url(encoded)))
    assert error.code == "picture_too_large" and "169000000 pixels, and at most 40000000" in error.message
    after = memory()
    assert after[0] - before < 50e6 and max(0, after[1] - max(before, highest)) < 50e6


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_row_18_the_header_is_believed_of_every_format(kind):
    wide = encode(Image.new("L" if kind != "WEBP" else "RGB", (16_383, 70)), kind)
    assert refusal(source(data_url(wide)), max_picture_pixels=10**6).code == "picture_too_large"
    assert read(source(data_url(wide)))[0].size == (16_383, 70)


def test_row_18_a_side_that_is_too_long_is_refused():
    error = refusal(source(data_url(encode(Image.new("L", (1, 16_385))))))
    assert error.code == "picture_too_large" and "1 to 16384 pixels, and it is 1 x 16385" in error.message


@pytest.mark.parametrize(
    ("encoded", "code"),
    [
        (b"", "unsupported_picture"),
        (b"garbage" * 100, "unsupported_picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "unsupported_picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_picture"),
        (b"<!DOCTYPE html><html></html>", "unsupported_picture"),
        (b"%PDF-1.4\n", "unsupported_picture"),
        (encode(stripes(), "BMP"), "unsupported_picture"),
        (encode(stripes(), "TIFF"), "unsupported_picture"),
        (encode(stripes(), "PPM"), "unsupported_picture"),
        (encode(stripes(), "ICO"), "unsupported_picture"),
        (encode(stripes())[:30], "unsupported_picture"),
        (encode(stripes())[:-60], "unsupported_picture"),
        (encode(stripes(), "JPEG")[:-300], "unsupported_picture"),
        (encode(stripes(), "WEBP")[:-30], "unsupported_picture"),
        (encode(stripes().quantize(), "GIF")[:-200], "unsupported_picture"),
    ],
)
def test_row_19_what_is_no_picture_is_refused(encoded, code):
    assert refusal(source(data_url(encoded))).code == code


@pytest.mark.parametrize(
    "url",
    [
        *(
            "cat.png",
            "/etc/passwd",
            "",
            "ftp://example.org/cat.png",
            "javascript:alert(1)",
            " data:image/png;base64,AA",
            "data:image/png;base64;charset=utf-8,AA",
        ),
        *("data:,cat", "data:image/png;base64", "data:image/png,AAAA", "data:image/png;base64,====", "data:"),
        *(
            "data:image/png;base64,AAA",
            "data:image/png;base64,AA=A",
            "data:image/png;base64,A\u00e9AA",
            "data:;base64,-_==",
        ),
    ],
)
def test_row_19_what_is_no_url_of_a_picture_is_refused(url):
    assert refusal(source(url)).code in ("invalid_value", "unsupported_picture")


@pytest.mark.parametrize(
    "url",
    [
        "DATA:image/png;BASE64," + (text := base64.b64encode(encoded := encode(stripes())).decode()).rstrip("="),
        "data:image/png;charset=utf-8;base64," + "".join(f"%{ord(each):02X}" for each in text),
        "data:image/png;base64," + base64.urlsafe_b64encode(encoded).decode(),
        " data:image/png;base64,\r\n" + "\n".join(text[start : start + 76] for start in range(0, len(text), 76)),
        "data:image/png," + "".join(f"%{each:02x}" for each in encoded),
    ],
)
def test_data_urls_are_taken_as_browsers_take_them(url):
    assert "+" in text and "/" in text
    (picture,) = read(source(url), max_picture_bytes=len(encoded))
    np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(stripes()))
    error = refusal(source(url), max_picture_bytes=len(encoded) - 1)
    assert error.code == "picture_too_large" and f"{len(encoded)} bytes" in error.message


def test_row_20_too_many_pictures():
    error = refusal(*[source("data:;base64,")] * 1000)
    assert (error.status, error.code) == (400, "too_many_pictures")
    assert "1000 pictures, and at most 16" in error.message


def test_lengths_are_checked_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr(DataUrl, "decode", lambda _: pytest.fail("decoded"))
    small, large = (source("data:image/png;base64," + "A" * length) for length in (400, 408))
    error = refusal(small, large, max_picture_bytes=300)
    assert error.code == "picture_too_large" and "306 bytes, and at most 300" in error.message


def test_what_may_be_too_long_is_counted_beside_the_loop(monkeypatch):
    seen, count = [], DataUrl.size

    def size(url):
        seen.append(threading.current_thread() is threading.main_thread())
        return count(url)

    monkeypatch.setattr(DataUrl, "size", size)
    encoded = encode(stripes())
    url = data_url(encoded)
    padded = url + "\n" * (2 * len(url))  # blanks stand for nothing
    assert [each.size for each in read(source(padded), source(url), max_picture_bytes=len(url))] == [stripes().size] * 2
    assert seen == [False]
    refusal(source(url), max_picture_bytes=len(encoded) - 1)
    assert seen == [False, False]


def test_headers_are_all_read_before_a_picture_is_decoded(monkeypatch):
    monkeypatch.setattr(picture_bytes.EncodedPicture, "decode", lambda *_: pytest.fail("decoded"))
    fine = source(data_url(encode(stripes((100, 100)))))
    assert refusal(fine, source(data_url(encode(stripes((101, 100))))), max_picture_pixels=10_000).code == (
        "picture_too_large"
    )
    error = refusal(*[fine] * 5, max_picture_pixels=10_000)
    assert error.code == "picture_too_large" and "50000 pixels together, and at most 40000" in error.message


def test_an_unknown_detail_is_refused():
    error = refusal(source(data_url(encode(stripes())), "ultra"))
    assert error.code == "invalid_value" and "auto, low, high, got 'ultra'" in error.message


def slow(monkeypatch, seconds):
    """Decoding that takes so long, and how many did so at once."""
    running, most, lock = [0], [0], threading.Lock()

    def decode(self, _):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(seconds)
        with lock:
            running[0] -= 1
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(picture_bytes.EncodedPicture, "decode", decode)
    return most


def test_two_pictures_are_decoded_at_once(monkeypatch):
    most = slow(monkeypatch, 0.02)
    assert len(read(*[source(data_url(encode(stripes())))] * 8)) == 8
    assert most == [2]


@pytest.mark.slow
def test_a_picture_that_takes_too_long_is_given_up_and_keeps_its_place(monkeypatch):
    """Two are late; the next two find no place until those have ended, and then one does."""
    most = slow(monkeypatch, 0.6)
    monkeypatch.setattr(pictures, "DECODE_SECONDS", 0.2)
    monkeypatch.setattr(pictures, "WAIT_SECONDS", 0.1)
    one = source(data_url(encode(stripes())))

    async def run():
        reader = PictureReader(ServerSettings())
        late = await asyncio.gather(reader.read([one]), reader.read([one]), return_exceptions=True)
        busy = await asyncio.gather(reader.read([one]), return_exceptions=True)
        await asyncio.sleep(0.6)
        slow(monkeypatch, 0.0)
        return [*late, *busy, await reader.read([one])]

    first, second, third, fourth = asyncio.run(run())
    assert [(each.status, each.code) for each in (first, second)] == [(400, "picture_too_large")] * 2
    assert (third.status, third.code, third.headers["retry-after"]) == (429, "queue_full", "1")
    assert len(fourth) == 1 and most == [2]


def test_a_decoder_stops_when_its_time_is_over(monkeypatch):
    opened = picture_bytes.EncodedPicture(encode(stripes((300, 300)).effect_spread(9)), 10**6, WHERE)
    with pytest.raises(ApiError, match="not decoded within -1 s"):
        opened.decode(-1)


def test_row_33_the_loop_goes_on_while_a_large_picture_is_read():
    noise = np.random.default_rng(0).integers(0, 256, (1600, 2100, 3), np.uint8)
    url = data_url(encode(Image.fromarray(noise), compress_level=0))
    assert len(url) > 10e6

    async def run():
        reader, lags, done = PictureReader(ServerSettings(max_picture_bytes=2**25)), [], asyncio.Event()

        async def watch():
            while not done.is_set():
                begun = time.perf_counter()
                await asyncio.sleep(0.001)
                lags.append(time.perf_counter() - begun - 0.001)

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0.01)
        await reader.read([source(url)])
        done.set()
        await watching
        return lags

    lags = (sorted(asyncio.run(run())) for _ in range(3))  # of which other programs of this machine may disturb one
    assert any(each[int(len(each) * 0.99)] < 0.05 for each in lags)


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "pictures"
    (inside / "sub").mkdir(parents=True)
    for path in (inside / "cat.png", inside / "sub" / "ein bild.png", tmp_path / "secret.png"):
        path.write_bytes(encode(stripes()))
    (inside / "inner.png").symlink_to("sub/ein bild.png")
    (inside / "outer.png").symlink_to(tmp_path / "secret.png")
    (inside / "up").symlink_to(tmp_path)
    (inside / "round.png").symlink_to("round.png")
    os.mkfifo(inside / "pipe.png")
    (inside / "text.png").write_text("secret")
    return inside


@pytest.mark.parametrize("name", ["cat.png", "sub/ein%20bild.png", "inner.png"])
def test_row_17_files_inside_the_folder_are_read(folder, name):
    assert read(source("file:" + name), picture_dir=str(folder))[0].size == (40, 24)


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.png", "sub/../../secret.png", "%2e%2e/secret.png", "%2E%2E/secret.png", ".%2e/secret.png"),
        *(
            "..%2fsecret.png",
            "..%5csecret.png",
            "..\\secret.png",
            "%252e%252e/secret.png",
            "outer.png",
            "up/secret.png",
        ),
        *(
            "/etc/passwd",
            "///etc/passwd",
            "//localhost/etc/passwd",
            "//host/cat.png",
            "sub//cat.png",
            "./cat.png",
            "",
            ".",
        ),
        *(
            "sub",
            "pipe.png",
            "round.png",
            "none.png",
            "cat.png%00.jpg",
            "cat.png?x",
            "cat.png#x",
            "C:/cat.png",
            "a" * 5000,
        ),
        *("%ff.png", "~/cat.png", "cat.png/", "sub/.", "cat.png/.."),
    ],
)
def test_row_17_nothing_else_is_read(folder, name):
    error = refusal(source("file:" + name), picture_dir=str(folder))
    assert error.code == "invalid_value" and str(folder) not in error.message
    assert error.message == refusal(source("file:none.png"), picture_dir=str(folder)).message


def test_row_17_files_are_off_by_default(folder):
    for url in ("file:cat.png", f"file://{folder}/cat.png"):
        assert "reads no files" in refusal(source(url)).message
    with pytest.raises(ConfigError, match="picture_dir"):
        PictureReader(ServerSettings(picture_dir=str(folder / "none")))


def test_row_17_a_file_is_a_picture_of_no_more_than_so_many_bytes(folder):
    assert refusal(source("file:text.png"), picture_dir=str(folder)).code == "unsupported_picture"
    limits = {"picture_dir": str(folder), "max_picture_bytes": 100}
    assert refusal(source("file:cat.png"), **limits).code == "picture_too_large"


def test_row_14_nothing_is_fetched_without_a_list():
    for url in ("http://example.org/cat.png", "HTTPS://example.org/cat.png"):
        assert refusal(source(url)).code == "picture_host_not_allowed"


def test_a_fetched_picture_is_read_as_one_that_was_sent():
    class Canned:
        def check(self, url, where):
            return url

        def fetch(self, url, where):
            return encode(stripes()) if url.endswith("cat.png") else b"<html>"

    assert read(source("https://example.org/cat.png"), fetcher=Canned())[0].size == (40, 24)
    assert refusal(source("https://example.org/"), fetcher=Canned()).code == "unsupported_picture"
