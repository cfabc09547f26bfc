"""Parquet, by pyarrow where it is installed: rows out of groups of rows, which are read whole.

With a cache folder a file is written once as Arrow batches that are mapped into memory, so that rows in any order cost
little; without one the last groups are held.
"""

import importlib
import os
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

from modelwright.data.examples import Place
from modelwright.data.rows import Row
from modelwright.data.sources.kept import Kept
from modelwright.errors import RequestError

BATCH = 256
"""Rows of a batch in the cache."""
_HELD = 4
"""Groups of rows that are held in memory."""


class Parquet:
    """The rows of a file, each a mapping of its columns.

    Raises:
        RequestError: pyarrow is not installed, or the file is no parquet.
    """

    format: str | None = None

    def __init__(self, path: Path, shown: str, kept: Kept):
        self.files = (path,)
        self._shown = shown
        self._opened: tuple[int, _Groups] | None = None
        try:
            self._mapped = kept.made(path, "rows.arrow", lambda file: _write_batches(path, file))
            self._length = len(self._groups())
        except _arrow().ArrowInvalid as error:
            raise RequestError(f"{shown} is no parquet file that can be read: {error}") from error

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return Row(Place(self._shown, row + 1), self._groups().row(row), self.files[0].parent)

    def _groups(self) -> "_Groups":
        """What this process reads by; nothing of Arrow crosses to another."""
        if self._opened is None or self._opened[0] != os.getpid():
            groups = _parquet_groups(self.files[0]) if self._mapped is None else _mapped_batches(self._mapped)
            self._opened = os.getpid(), groups
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class _Groups:
    """Rows that are read in groups, of which the last few are held."""

    def __init__(self, sizes: list[int], read: Any):
        self._ends = [*accumulate(sizes)]
        self._read = read
        self._held: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, row: int) -> dict[str, Any]:
        group = bisect_right(self._ends, row)
        if group not in self._held:
            self._held[group] = self._read(group)
            if len(self._held) > _HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(group)
        start = self._ends[group - 1] if group else 0
        return self._held[group].slice(row - start, 1).to_pylist()[0]


def _arrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError:
        raise RequestError(
            "parquet is read by pyarrow, which is not installed: pip install 'modelwright[parquet]'"
        ) from None


def _parquet_groups(path: Path) -> _Groups:
    file = importlib.import_module("pyarrow.parquet").ParquetFile(path, memory_map=True)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return _Groups(sizes, file.read_row_group)


def _mapped_batches(path: Path) -> _Groups:
    arrow = _arrow()
    reader = arrow.ipc.open_file(arrow.memory_map(str(path)))
    sizes = [reader.get_batch(batch).num_rows for batch in range(reader.num_record_batches)]
    return _Groups(sizes, reader.get_batch)


def _write_batches(path: Path, file: IO[bytes]) -> None:
    arrow = _arrow()
    source = importlib.import_module("pyarrow.parquet").ParquetFile(path, memory_map=True)
    with arrow.ipc.new_file(file, source.schema_arrow) as writer:
        for batch in source.iter_batches(batch_size=BATCH):
            writer.write_batch(batch)
