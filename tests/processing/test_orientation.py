"""One picture, one orientation: whoever reads a photo, and however it is handed over, sees it upright.

The oracle is a picture with one red corner, drawn upright and stored as a camera holds it in each EXIF orientation.
"""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from modelwright.errors import RequestError
from modelwright.processing import draw_groundings, load_image, parse_grounding
from modelwright.processing.pictures import as_pictures
from tests.checkpoints.tiny import GOLDEN

ANSWER = "<|ref|>corner<|/ref|><|det|>[[0, 0, 500, 500]]<|/det|>"
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright picture is stored in each orientation (each is the inverse of what the viewer does)."""


def upright() -> Image.Image:
    picture = Image.new("RGB", (80, 120), "white")
    picture.paste("red", (0, 0, 40, 60))
    return picture


def stored(orientation: int, kind: str = "PNG") -> bytes:
    picture, turn = upright(), STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    (picture if turn is None else picture.transpose(turn)).save(stream, kind, exif=exif)
    return stream.getvalue()


def ways(data: bytes, folder) -> dict:
    """Every way to hand over one stored picture."""
    path = folder / "photo.png"
    path.write_bytes(data)
    opened = Image.open(io.BytesIO(data))
    text = base64.b64encode(data).decode()
    return {
        "path": path,
        "text": str(path),
        "file URL": path.as_uri(),
        "data URL": f"data:image/png;base64,{text}",
        "base64": text,
        "bytes": data,
        "stream": io.BytesIO(data),
        "opened": opened,
        "converted": Image.open(io.BytesIO(data)).convert("RGB"),  # as the official load_pil_images does
        "data set": {"bytes": data, "path": None},
    }


def test_the_oracle_is_what_a_viewer_shows():
    assert all(load_image(stored(which)).tobytes() == upright().tobytes() for which in STORED)
    assert {Image.open(io.BytesIO(stored(which))).size for which in STORED} == {(80, 120), (120, 80)}


@pytest.mark.parametrize("orientation", STORED)
def test_every_road_sees_the_upright_picture(orientation, processor, tmp_path):
    wanted = processor.process_one([{"role": "user", "content": "<image>"}], [upright()])
    drawn = draw_groundings(upright(), parse_grounding(ANSWER, (80, 120))).tobytes()
    for name, source in ways(stored(orientation), tmp_path).items():
        picture = draw_groundings(source, parse_grounding(ANSWER, (80, 120)))
        assert (picture.size, picture.tobytes()) == ((80, 120), drawn), name
        if name == "stream":
            source.seek(0)
        one = processor.process_one([{"role": "user", "content": "<image>"}], [source])
        assert np.array_equal(one.images, wanted.images), name
        assert one.images_spatial_crop.tolist() == wanted.images_spatial_crop.tolist()
        if name == "stream":
            source.seek(0)
        assert as_pictures(source)[0].tobytes() == upright().tobytes(), name


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_are_in_pixels_of_the_upright_picture(orientation, processor):
    """README's lines: the picture as it was opened is what boxes are found in and drawn on."""
    picture = Image.open(io.BytesIO(stored(orientation)))
    (found,) = parse_grounding(ANSWER, picture)
    assert found.boxes == ((0, 0, 500 / 999 * 80, 500 / 999 * 120),)
    for shown in ([Image.new("RGB", (9, 9)), picture], [(9, 9), stored(orientation)], stored(orientation)):
        assert parse_grounding(ANSWER, shown)[0].boxes == found.boxes
    drawn = draw_groundings(picture, [found])
    assert drawn.size == (80, 120) and drawn.getpixel((20, 50)) == (255, 0, 0)
    assert drawn.getpixel((60, 100)) == (255, 255, 255) != drawn.getpixel((40, 30))


def test_a_collation_of_photos_is_that_of_upright_ones(processor):
    rows = [[{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "red"}]] * 3
    photos = [[Image.open(io.BytesIO(stored(which, "JPEG")))] for which in (1, 6, 3)]
    turned = [[load_image(stored(which, "JPEG"))] for which in (1, 6, 3)]
    one, other = (processor(conversations=rows, images=images, inference_mode=False) for images in (photos, turned))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_what_is_no_picture_in_base64_is_a_missing_file_and_no_message_is_long():
    long = base64.b64encode(bytes(range(256)) * 2000).decode()
    for source in (long, f"data:image/png;base64,{long}", "abcd", "data:" + "x" * 10**6, long[:-3] + "!"):
        with pytest.raises(RequestError) as caught:
            load_image(source)
        assert len(str(caught.value)) <= 900
    for nothing in ({"path": None}, {"picture": "a.png"}):
        with pytest.raises(RequestError, match=r"a picture must be a PIL image, a path, .* not NoneType"):
            load_image(nothing)
    with pytest.raises(RequestError, match=r"^no such picture: abcd$"):
        load_image("abcd")
    with pytest.raises(RequestError, match=r"^pictures are not fetched from the network \(https://a/b\.png\)"):
        load_image("https://a/b.png")


def test_a_golden_picture_in_base64_is_the_picture():
    data = (GOLDEN / "square.png").read_bytes()
    text = base64.encodebytes(data).decode()  # with line ends
    assert load_image(text).tobytes() == load_image(data).tobytes()


@pytest.mark.parametrize("first", [False, True])
def test_arrays_and_tensors_are_pictures(first, processor):
    levels = np.asarray(upright())
    given = levels.transpose(2, 0, 1) if first else levels
    wanted = load_image(upright()).tobytes()
    for array in (given, given / 255, (given / 255).astype(np.float32), torch.tensor(given.copy())):
        assert load_image(array).tobytes() == wanted
    assert load_image(torch.tensor(given.copy()).to(torch.bfloat16) / 255).size == (80, 120)
    one = processor(text="<image>", images=torch.tensor(given.copy()))
    two = processor(text="<image>", images=[upright()])
    assert np.array_equal(one["images"], two["images"])
