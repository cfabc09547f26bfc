"""Any picture a caller may hand over, made an upright RGB ``PIL.Image``; nothing here knows about tiles or models."""

import io
import os
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from modelwright.errors import RequestError
from modelwright.processing.arrays import Array, is_array, levels_of
from modelwright.processing.data_urls import DataUrl, is_data_url

MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3
"""Largest accepted width x height, 89 megapixels: the size at which Pillow itself begins to warn of a bomb."""

Picture = str | os.PathLike[str] | bytes | Image.Image | IO[bytes] | Array | Mapping[str, Any]
"""A path, a ``data:`` or ``file:`` URL, base64 text, the bytes of an encoded picture, a picture, an open binary file, a
numpy array or torch tensor (see `levels_of`), or what data sets hold: a mapping with ``bytes`` or ``path``."""

_MOVING = ("GIF", "PNG", "WEBP", "AVIF")
"""Formats whose further frames are motion; others hold pages or thumbnails, and their first frame is the picture."""
_WHITE = (255, 255, 255, 255)
_STRIP = 256 * 1024
"""Pixels whose colours are converted at once."""
_BY_THEIR_RANGE = ("I", "F")
"""Modes whose values are scaled by the largest, so that no part can be converted alone."""
_EIGHT_OF_SIXTEEN_BITS = (np.arange(65536) / 257 + 0.5).astype(np.uint8)
_SHOWN = 200
"""Characters of a name that an error shows."""


def load_image(source: Picture, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one picture as upright RGB, first frame only.

    EXIF orientation is applied, transparency is flattened on white, every mode becomes RGB (16-bit greyscale scaled to
    8 bits). The size is read from the header and checked before a pixel is decoded.

    Raises:
        RequestError: the source is missing, remote, several pictures, not a picture, cut short, empty or larger than
            ``max_pixels``.
    """
    if isinstance(source, Mapping):
        source = cast(Picture, source.get("path") if source.get("bytes") is None else source["bytes"])
    if is_array(source):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, "picture", max_pixels)
    name, stream = _open_source(source)
    ours = stream is not source  # a stream that belongs to the caller stays open
    with stream if ours else nullcontext(), _open_header(name, stream, max_pixels) as image:
        return _decode(image, name, max_pixels)


def picture_size(source: Picture, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of what `load_image` makes of a source, upright; of most formats only the header is read.

    Raises:
        RequestError: as `load_image`, but for what only decoding shows.
    """
    if isinstance(source, Mapping):
        source = cast(Picture, source.get("path") if source.get("bytes") is None else source["bytes"])
    if is_array(source) or isinstance(source, Image.Image):
        return load_image(source, max_pixels=max_pixels).size
    name, stream = _open_source(source)
    with stream if stream is not source else nullcontext(), _open_header(name, stream, max_pixels) as image:
        width, height = image.size
        _check_size(width, height, name, max_pixels)
        return (height, width) if _orientation(image) >= 5 else (width, height)


def count_frames(source: Picture) -> int:
    """How many pictures a source that `load_image` has read shows one after another; 1 where it is not animated.

    An open file is left as it is, and counts as one.
    """
    if isinstance(source, Mapping):
        source = cast(Picture, source.get("path") if source.get("bytes") is None else source["bytes"])
    try:
        if isinstance(source, Image.Image):
            return _frames(source)
        if hasattr(source, "read") or is_array(source):
            return 1
        with _open_source(source)[1] as stream, Image.open(stream) as image:
            return _frames(image)
    except Exception:  # the first frame is sound, as was seen; what comes after it may raise almost anything
        return 1


def _frames(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) if image.format in _MOVING else 1


def _open_source(source: Any) -> tuple[str, IO[bytes]]:
    if isinstance(source, bytes | bytearray | memoryview):
        return "picture bytes", io.BytesIO(source)
    if isinstance(source, str) and is_data_url(source):
        return "data URL", io.BytesIO(DataUrl.read(source).decode())
    if isinstance(source, str | os.PathLike):
        return _open_named(os.fspath(source))
    if hasattr(source, "read"):
        return "file object", source
    raise RequestError(
        f"a picture must be a PIL image, a path, bytes, a numpy array or a torch tensor, not {type(source).__name__}"
    )


def _open_named(name: str) -> tuple[str, IO[bytes]]:
    """A file by its path or ``file:`` URL, or text that is a picture in base64."""
    shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
    if name.lower().startswith(("http:/", "https:/")):  # a Path holds one slash less
        shown = re.sub(r"^(https?:)/+", r"\1//", shown, flags=re.IGNORECASE)
        raise RequestError(f"pictures are not fetched from the network ({shown}): pass a file or a data: URL")
    path = Path(url2pathname(urlsplit(name).path)) if name.lower().startswith("file:/") else Path(name)
    try:
        return shown, path.open("rb")
    except (OSError, ValueError) as error:
        encoded = _picture_in_base64(name)
        if encoded is not None:
            return "base64 text", io.BytesIO(encoded)
        if isinstance(error, FileNotFoundError):
            raise RequestError(f"no such picture: {shown}") from None
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"cannot open the picture {shown}: {reason}") from error


def _picture_in_base64(text: str) -> bytes | None:
    """The bytes that base64 text stands for, if they begin as a picture does."""
    try:
        encoded = DataUrl.read(f"data:;base64,{text}").decode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(encoded))
    except Image.DecompressionBombError:  # which says its size itself
        return encoded
    except Exception:  # not base64, or no picture
        return None
    return encoded


def _from_array(array: Any) -> Image.Image:
    pictures = list(levels_of(array))
    if len(pictures) != 1:
        raise RequestError(f"one picture was expected, got an array of {len(pictures)}, of shape {list(array.shape)}")
    return Image.fromarray(pictures[0])


def _open_header(name: str, stream: IO[bytes], max_pixels: int) -> Image.Image:
    """Open without decoding; Pillow's own bomb checks become our one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(stream)
    except Image.DecompressionBombError as error:
        raise RequestError(f"{name} is too large: at most {max_pixels} pixels are accepted ({error})") from error
    except Exception as error:
        raise RequestError(f"{name} is not a picture that can be read") from error


def _decode(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(*image.size, name, max_pixels)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except Exception as error:  # a decoder fed with damaged data raises almost anything
        raise RequestError(f"{name} is damaged or cut short: {error}") from error


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise RequestError(f"{name} is too large: {width} x {height} = {width * height} pixels, at most {max_pixels}")
    if width == 0 or height == 0:
        raise RequestError(f"{name} has no pixels: it is {width} x {height}")


def _orientation(image: Image.Image) -> int:
    """EXIF's number of how a picture lies, 1 where it stands upright; from 5 on its sides are exchanged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # unreadable metadata does not make the pixels unreadable
        return 1
    return found if found in range(2, 9) else 1


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) if _orientation(image) > 1 else image
    except Exception:  # likewise
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """A picture of its own, in RGB, made strip by strip: Pillow and numpy let no other thread run in a strip."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image.copy()
    width, height = image.size
    rows = height if image.mode in _BY_THEIR_RANGE else max(1, _STRIP // width)
    if rows >= height:
        return _strip_to_rgb(image)
    whole = Image.new("RGB", image.size, None)  # not filled before it is
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        whole.paste(_strip_to_rgb(image.crop(box)), box)
    return whole


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    convert = _DEEP_MODES.get(image.mode)
    if convert is not None:
        return convert(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image.convert("RGB")


def _from_integers(image: Image.Image) -> Image.Image:
    """16-bit (or wider) greyscale to 8 bits: 65535 becomes 255. Mode ``I`` holding only 0..255 is taken as it is."""
    values = np.asarray(image)
    if image.mode == "I" and values.max() <= 255:
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return Image.fromarray(_EIGHT_OF_SIXTEEN_BITS[np.clip(values, 0, 65535)])


def _from_floats(image: Image.Image) -> Image.Image:
    """Floating greyscale to 8 bits: values within 0..1 are scaled by 255, others are clipped to 0..255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    scale = 255.0 if values.max() <= 1 else 1.0
    return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8))


def _from_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
    assert converted is not None  # only an in-place transform returns None
    return converted


_DEEP_MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    **dict.fromkeys(("I", "I;16", "I;16L", "I;16B", "I;16N"), _from_integers),
    "F": _from_floats,
    "LAB": _from_lab,
}
