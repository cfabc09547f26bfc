"""Pictures of requests: what is taken looks as it was sent, and what is not is refused before it costs anything."""

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image

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


def read(*sources, **settings):
    async def run():
        reader = PictureReader(ServerSettings(**settings))
        try:
            return await reader.read(sources)
        finally:
            reader.close()

    return asyncio.run(run())


def refusal(*sources, **settings):
    with pytest.raises(ApiError) as caught:
        read(*sources, **settings)
    assert caught.value.param == WHERE and "0x" not in caught.value.message and " /" not in caught.value.message
    return caught.value


def stripes(size=(40, 24)):
    """A picture of which no two corners are alike."""
    width, height = size
    x, y = np.meshgrid(np.arange(width) * 255 // width, np.arange(height) * 255 // height)
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def test_a_picture_comes_as_it_was_sent():
    (picture,) = read(source(data_url(encode(stripes())), "low"))
    assert (picture.size, picture.detail, picture.image.mode) == ((40, 24), "low", "RGB")
    np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(stripes()))


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("cat.png", "invalid_value"),
        ("ftp://example.org/cat.png", "invalid_value"),
        ("data:,cat", "unsupported_picture"),
        ("data:image/png;base64,====", "unsupported_picture"),
        ("data:image/png;base64,AAAA", "unsupported_picture"),
        (data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "unsupported_picture"),
        (data_url(encode(stripes())[:-60]), "unsupported_picture"),
    ],
)
def test_what_is_no_picture_is_refused(url, code):
    assert refusal(source(url)).code == code


def test_row_20_too_many_pictures():
    error = refusal(*[source("data:;base64,")] * 1000)
    assert (error.status, error.code) == (400, "too_many_pictures")
    assert "1000 pictures, and at most 16" in error.message
