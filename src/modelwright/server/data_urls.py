"""Pictures inside a request: ``data:`` URLs, whose length is checked before they are decoded."""

import binascii

from modelwright.server.wire.errors import ApiError

_BLANKS = " \t\r\n\f"
_PIECE = 256 * 1024
"""Characters decoded, or counted, at once. Other threads, the event loop among them, run between two pieces."""


def check_header(url: str, where: str) -> None:
    """Refuse a URL that holds no base64, by what it begins with.

    Raises:
        ApiError: so it is.
    """
    start = url.find(",", 0, 256)
    if start < 0 or not url[:start].lower().endswith(";base64"):
        message = f"{where}: a data: URL must read data:image/<type>;base64,<data>"
        raise ApiError(400, "unsupported_picture", message, param=where)


def may_be_long(url: str, most: int) -> bool:
    """Whether a URL is so long that it may stand for more than `most` bytes; blanks in it stand for nothing."""
    return _size_of(len(url)) > most


def check_length(url: str, most: int, where: str) -> None:
    """Refuse what cannot become a picture of at most `most` bytes, by its length. In a thread: it is read for blanks.

    Raises:
        ApiError: it is too long.
    """
    start = url.index(",") + 1
    characters = len(url) - start
    for place in range(start, len(url), _PIECE):
        characters -= sum(url.count(blank, place, place + _PIECE) for blank in "=" + _BLANKS)
    size = _size_of(characters)
    if size > most:
        message = f"{where}: the picture has {size} bytes, and at most {most} are taken"
        raise ApiError(400, "picture_too_large", message, param=where)


def _size_of(characters: int) -> int:
    return characters * 3 // 4


def decode_data_url(url: str, where: str) -> bytes:
    """The bytes of a URL that was checked; line breaks and blanks in base64 are left out.

    Raises:
        ApiError: it is not valid base64.
    """
    decoded, rest = bytearray(), b""
    blanks = _BLANKS.encode()
    try:
        for start in range(url.index(",") + 1, len(url), _PIECE):
            piece = rest + url[start : start + _PIECE].encode("ascii").translate(None, blanks)
            whole = len(piece) // 4 * 4
            if b"=" in rest[-4:] or (b"=" in piece[:whole] and start + _PIECE < len(url)):
                whole = 0  # padding, after which nothing may come: kept, and decoded with the rest
            decoded += binascii.a2b_base64(piece[:whole], strict_mode=True)
            rest = piece[whole:]
        decoded += binascii.a2b_base64(rest, strict_mode=True)
    except ValueError:  # binascii.Error and UnicodeEncodeError are of this kind
        raise ApiError(400, "unsupported_picture", f"{where}: the data: URL is not valid base64", param=where) from None
    return bytes(decoded)
