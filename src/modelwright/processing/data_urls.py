"""Pictures written into a ``data:`` URL: what browsers take, whose length can be told before it is decoded."""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from modelwright.errors import RequestError

_SCHEME = re.compile(r"[\x00-\x20]*data:", re.IGNORECASE)
_BASE64 = re.compile(r"; *base64\s*", re.IGNORECASE)
_SHOWN = 40
"""Characters of a URL that an error shows."""
_PIECE = 256 * 1024
"""Characters decoded, or counted, at once. Other threads, an event loop among them, run between two pieces."""
_LINES = b"\t\r\n"
"""What no URL holds, wherever it was broken into lines."""
_BLANKS = b"\t\r\n\f "
_STANDARD = bytes.maketrans(b"-_", b"+/")
"""The letters of URL-safe base64 in the standard alphabet."""


def is_data_url(text: str) -> bool:
    """Whether it begins as a ``data:`` URL, in letters of any case."""
    return _SCHEME.match(text) is not None


@dataclass(frozen=True)
class DataUrl:
    """A ``data:`` URL as WHATWG's fetch standard reads it, and URL-safe base64 as well.

    The type that it names says nothing here, for what a picture is its content tells. After ``;base64`` come base64,
    with padding or without, and blanks that stand for nothing; else come the bytes themselves. Either may be escaped
    by ``%``.

    Attributes:
        text: all of it.
        start: where its data begin.
        base64: whether they are base64.
    """

    text: str
    start: int
    base64: bool

    @classmethod
    def read(cls, text: str) -> "DataUrl":
        """By what stands before the comma; no data are looked at.

        Raises:
            RequestError: it has none.
        """
        scheme, comma = _SCHEME.match(text), text.find(",")
        if scheme is None or comma < 0:
            raise RequestError(f"a data: URL must read data:<type>;base64,<data>, got {text[:_SHOWN]!r}")
        kind = text[scheme.end() : comma]
        return cls(text, comma + 1, _BASE64.fullmatch(kind, max(kind.rfind(";"), 0)) is not None)

    @property
    def most(self) -> int:
        """Bytes that it can stand for at most, by its length alone."""
        length = len(self.text) - self.start
        if self.base64:
            return length * 3 // 4
        return length if self.text.isascii() else length * 4

    def size(self) -> int:
        """Bytes that it stands for, counted without decoding base64."""
        if self.base64:
            return sum(len(each) - each.count(b"=") for each in self._letters()) * 3 // 4
        return sum(map(len, self._pieces()))

    def decode(self) -> bytes:
        """What it stands for.

        Raises:
            RequestError: it is not valid base64.
        """
        if not self.base64:
            return b"".join(self._pieces())
        decoded, rest = bytearray(), b""
        try:
            for piece in self._letters():
                rest += piece
                padding = rest.find(b"=")
                whole = (len(rest) if padding < 0 else padding) // 4 * 4
                decoded += binascii.a2b_base64(rest[:whole], strict_mode=True)
                rest = rest[whole:]
                if len(rest) > 4:
                    raise binascii.Error("something follows its padding")
            padded = rest if b"=" in rest else rest + b"=" * (-len(rest) % 4)
            decoded += binascii.a2b_base64(padded, strict_mode=True)
        except binascii.Error as error:
            raise RequestError(f"the data: URL is not valid base64: {error}") from error
        return bytes(decoded)

    def _letters(self) -> Iterator[bytes]:
        """Base64 in the standard alphabet, without blanks."""
        return (piece.translate(_STANDARD, _BLANKS) for piece in self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        """The data with nothing escaped, up to a fragment."""
        end, held = self.text.find("#", self.start), b""
        end = len(self.text) if end < 0 else end
        for place in range(self.start, end, _PIECE):
            piece = held + self.text[place : min(place + _PIECE, end)].encode(errors="replace").translate(None, _LINES)
            cut = piece.find(b"%", max(len(piece) - 2, 0))  # an escape that may go on in the next piece
            piece, held = (piece, b"") if cut < 0 else (piece[:cut], piece[cut:])
            yield unquote_to_bytes(piece)
        yield unquote_to_bytes(held)
