"""``metrics.jsonl``: one JSON object for each logged step; a run that is continued goes on in it without doubles."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"


class MetricsFile:
    """The file of one run, opened to go on after step `done`: rows of later steps, and a half-written one, are cut off.

    Args:
        folder: the run's folder, made where it is not there.
        done: steps that were done before.
    """

    def __init__(self, folder: Path, done: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        _cut(self.path, done)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """Add one object; it is in the file, whole, when this returns."""
        self._file.write(json.dumps(as_json(values), allow_nan=False, separators=(", ", ": ")) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, in order, as far as it was written; none where there is no file."""
    for _, row in _lines(path):
        yield row


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with null for each number that is none; ``not_finite`` then names them: nan, inf or -inf by name."""
    lost: dict[str, str] = {}
    plain = {name: _plain(value, name, lost) for name, value in values.items()}
    return plain | {"not_finite": lost} if lost else plain


def _plain(value: Any, name: str, lost: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        lost[name] = str(value)
        return None
    if isinstance(value, Mapping):
        return {key: _plain(inner, f"{name}/{key}", lost) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{name}/{index}", lost) for index, inner in enumerate(value)]
    return value


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset of the byte after it, object) of each whole line; ends at the first that is none."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or not isinstance(row, dict):
                return
            end += len(line)
            yield end, row


def _cut(path: Path, done: int) -> None:
    """Leave the rows of the first steps."""
    kept = max((end for end, row in _lines(path) if row.get("step", 0) <= done), default=0) if done else 0
    if path.exists() and path.stat().st_size != kept:
        os.truncate(path, kept)
