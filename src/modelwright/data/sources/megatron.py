"""Megatron's pair of files: tokens in ``.bin``, and in ``.idx`` where each sequence and each document of them begins.

The layout, as Megatron-LM documents and writes it (``IndexedDataset``), in little-endian numbers: nine bytes of mark,
the version 1 (uint64), a code of the tokens' type (uint8), the sequences n and the entries d of the list of documents
(uint64 each), then lengths in tokens (int32 [n]), places in bytes (int64 [n]), and the first sequence of each document,
closed by n (int64 [d]). What may follow, one byte a sequence for data of several kinds, is not read.
"""

import struct
from pathlib import Path

import numpy as np

from modelwright.data.examples import Place
from modelwright.data.rows import Row
from modelwright.data.sources.kept import Kept
from modelwright.data.sources.stored import StoredFile
from modelwright.errors import RequestError

MARK = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<9sQBQQ")
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""The codes of whole numbers; 6 and 7 are floats, which are no tokens."""


class Megatron:
    """The documents of a pair of files, each the tokens of all its sequences, as int64 [n].

    Args:
        path: the ``.idx``.

    Raises:
        RequestError: a file is missing or damaged, or the two do not fit each other.
    """

    format: str | None = "megatron"

    def __init__(self, path: Path, shown: str, kept: Kept):
        tokens = path.with_suffix(".bin")
        self.files = (path, tokens)
        self._shown = shown
        if not tokens.is_file():
            raise RequestError(f"{shown} needs its tokens beside it, and there is no {tokens.name}")
        self._stored = StoredFile(tokens)
        index = path.read_bytes()
        if len(index) < _HEAD.size or index[:9] != MARK:
            raise RequestError(f"{shown} does not begin as an index of Megatron does ({MARK!r})")
        _, version, code, sequences, entries = _HEAD.unpack_from(index)
        if version != 1 or code not in _TYPES:
            raise RequestError(
                f"{shown} is of version {version} with tokens of code {code}: version 1 and the codes "
                f"{', '.join(map(str, _TYPES))} are read"
            )
        if len(index) < _HEAD.size + 12 * sequences + 8 * entries:
            raise RequestError(f"{shown} is cut short: it names {sequences} sequences in {len(index)} bytes")
        self._type = np.dtype(_TYPES[code])
        at = _HEAD.size
        self._lengths = np.frombuffer(index, "<i4", sequences, at)
        self._starts = np.frombuffer(index, "<i8", sequences, at + 4 * sequences)
        self._documents = np.frombuffer(index, "<i8", entries, at + 12 * sequences)
        self._check()

    def _check(self) -> None:
        ends = self._starts + self._lengths.astype(np.int64) * self._type.itemsize
        if len(ends) and (self._lengths.min() < 0 or self._starts.min() < 0 or ends.max() > self._stored.size):
            raise RequestError(
                f"{self._shown} names tokens up to byte {ends.max()}, and {self.files[1].name} has {self._stored.size}"
            )
        sound = len(self._documents) and self._documents[0] == 0 and self._documents[-1] == len(ends)
        if not sound or (np.diff(self._documents) < 0).any():
            raise RequestError(
                f"{self._shown}: its documents must begin at sequence 0, ascend, and end at {len(ends)}, the number "
                f"of its sequences, got {np.array2string(self._documents, threshold=8)}"
            )

    def __len__(self) -> int:
        return len(self._documents) - 1

    def __getitem__(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise IndexError(row)
        first, last = int(self._documents[row]), int(self._documents[row + 1])
        pieces = [self._sequence(number) for number in range(first, last)]
        tokens = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        return Row(Place(self._shown, row + 1), tokens)

    def _sequence(self, number: int) -> np.ndarray:
        start = int(self._starts[number])
        content = self._stored.read(start, start + int(self._lengths[number]) * self._type.itemsize)
        return np.frombuffer(content, self._type).astype(np.int64)
