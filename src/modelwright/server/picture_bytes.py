"""The bytes of a picture to an upright RGB picture: its header is read and checked before a pixel is decoded."""

import io
import time

from PIL import Image

from modelwright.errors import RequestError
from modelwright.processing.images import load_image
from modelwright.server.wire.errors import ApiError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""What a picture may be, told by its content."""
LONGEST_SIDE = 16_384
_LISTED = "PNG, JPEG, WEBP or GIF"


class _Timed(io.BytesIO):
    """Bytes that a decoder cannot read any more once its time is over."""

    deadline = float("inf")

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self.deadline:
            raise TimeoutError
        return super().read(size)


class EncodedPicture:
    """A picture whose header has been read.

    Raises:
        ApiError: it is none of `FORMATS`, or its sides or its pixels are too many.
    """

    def __init__(self, encoded: bytes, most_pixels: int, where: str):
        self._where, self._most, self._stream = where, most_pixels, _Timed(encoded)
        try:
            self._image = Image.open(self._stream, formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise too_large(where, f"the picture has more pixels than the {most_pixels} that are taken") from None
        except Exception:  # whose text tells of files and addresses
            raise unsupported(where, f"this is no picture in {_LISTED}") from None
        width, height = self._image.size
        if not (1 <= width <= LONGEST_SIDE and 1 <= height <= LONGEST_SIDE):
            sides = f"the sides of a picture must be 1 to {LONGEST_SIDE} pixels, and it is {width} x {height}"
            raise too_large(where, sides)
        if self.pixels > most_pixels:
            many = f"{width} x {height} = {self.pixels} pixels, and at most {most_pixels} are taken"
            raise too_large(where, f"the picture has {many}")

    @property
    def pixels(self) -> int:
        width, height = self._image.size
        return width * height

    def decode(self, seconds: float) -> Image.Image:
        """Upright, in RGB, transparency on white, the first frame of several.

        A JPEG is decoded in full: one decoded at half its size and made smaller from there is not quite what the model
        was trained on.

        Raises:
            ApiError: it is damaged, or `seconds` are over.
        """
        self._stream.deadline = time.monotonic() + seconds
        try:
            return load_image(self._image, max_pixels=self._most)
        except RequestError:
            if time.monotonic() > self._stream.deadline:
                raise too_slow(self._where, seconds) from None
            raise unsupported(self._where, "the picture is damaged or cut short") from None
        finally:
            self._image.close()


def unsupported(where: str, why: str) -> ApiError:
    return ApiError(400, "unsupported_picture", f"{where}: {why}", param=where)


def too_large(where: str, why: str) -> ApiError:
    return ApiError(400, "picture_too_large", f"{where}: {why}", param=where)


def too_slow(where: str, seconds: float) -> ApiError:
    return too_large(where, f"the picture is not decoded within {seconds:g} s")
