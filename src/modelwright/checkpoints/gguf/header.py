"""The header of a GGUF file, read item by item: no number in it is believed before the bytes it promises are there.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The ``gguf`` package reads it too,
in seconds where a vocabulary is large, and asks for as much memory as a damaged file names.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import numpy as np

VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""The kinds of values with a fixed size, by their numbers in a file, as ``struct`` calls them."""
ALIGNMENT = "general.alignment"
DIMENSIONS = 4


class DamagedError(Exception):
    """What is wrong with a file, in words that follow its name."""


@dataclass(frozen=True)
class Described:
    """What a header says of a tensor: its shape, outermost dimension first, its type's number, where it begins."""

    shape: tuple[int, ...]
    type: int
    start: int


def read_header(file: BufferedReader, size: int) -> tuple[dict[str, Any], dict[str, Described]]:
    """The metadata and what is said of the tensors, both by name, of an open file of ``size`` bytes.

    Raises:
        DamagedError: it is no GGUF file, one of a version or kind that is not read here, or cut short.
    """
    cursor = _Cursor(file, size)
    if cursor.take(4) != b"GGUF":
        raise DamagedError("does not begin as a GGUF file does")
    version = cursor.number("I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise DamagedError(
            "is written for big-endian machines" if swapped in VERSIONS else f"has version {version}; 2 and 3 are read"
        )
    tensors, values = cursor.number("Q"), cursor.number("Q")
    metadata = _named(values, cursor, lambda: _value(cursor, cursor.number("I")))
    described = _named(tensors, cursor, lambda: _tensor(cursor))
    alignment = metadata.get(ALIGNMENT, 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise DamagedError(f"has the {ALIGNMENT} {alignment!r}, which must be 1 or more")
    begin = math.ceil(cursor.place / alignment) * alignment
    return metadata, {name: Described(each.shape, each.type, begin + each.start) for name, each in described.items()}


class _Cursor:
    """Reads on from a place, and never beyond the end."""

    def __init__(self, file: BufferedReader, size: int):
        self._file, self._left = file, size
        self.place = 0

    def take(self, count: int) -> bytes:
        if count > self._left:
            raise DamagedError(f"is cut short or damaged: {count} bytes are to follow byte {self.place}")
        data = self._file.read(count)
        if len(data) < count:
            raise DamagedError(f"ends before byte {self.place + count}")
        self.place += count
        self._left -= count
        return data

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        place = self.place
        try:
            return self.take(int.from_bytes(self.take(8), "little")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DamagedError(f"holds a text at byte {place} that is not UTF-8") from error


def _named(count: int, cursor: _Cursor, read: Callable[[], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        name = cursor.text()
        if name in found:
            raise DamagedError(f"holds {name!r} twice")
        found[name] = read()
    return found


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind == STRING:
        return cursor.text()
    if kind == ARRAY:
        return _array(cursor)
    if kind not in NUMBERS:
        raise DamagedError(f"holds a value of the unknown kind {kind} before byte {cursor.place}")
    return cursor.number(NUMBERS[kind])


def _array(cursor: _Cursor) -> list[Any]:
    kind, count = cursor.number("I"), cursor.number("Q")
    if kind == STRING:
        return [cursor.text() for _ in range(count)]
    if kind not in NUMBERS:
        raise DamagedError(f"holds a list of values of the kind {kind} before byte {cursor.place}")
    type_ = np.dtype(f"<{NUMBERS[kind]}" if kind != 7 else "?")
    return np.frombuffer(cursor.take(count * type_.itemsize), type_).tolist()


def _tensor(cursor: _Cursor) -> Described:
    dimensions = cursor.number("I")
    if dimensions > DIMENSIONS:
        raise DamagedError(f"holds a tensor of {dimensions} dimensions before byte {cursor.place}")
    inside_out = [cursor.number("Q") for _ in range(dimensions)]
    return Described(tuple(reversed(inside_out)), cursor.number("I"), cursor.number("Q"))
