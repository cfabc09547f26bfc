"""The output of ``modelwright generate``: a line for each input line, in order, and what is there from before."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelwright.cli.console import write
from modelwright.cli.lines import Line
from modelwright.errors import RequestError


@dataclass(frozen=True)
class Kept:
    """Whole lines of an earlier run: how many, how many of them errors, and where in the file they end."""

    lines: int = 0
    errors: int = 0
    bytes: int = 0


def whole_answers(path: Path, lines: Iterator[Line]) -> Kept:
    """What `path` holds of the answers to `lines`, which are read on to the first without one.

    A last line that was cut short does not count.

    Raises:
        RequestError: a line of it is not the answer to the input's line.
    """
    count = errors = size = 0
    if not path.is_file():  # a pipe or a device keeps nothing
        return Kept()
    with path.open("rb") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                break
            count += 1
            found, line = _key(raw), next(lines, None)
            if line is None or found[0] != line.key:
                raise RequestError(
                    f"--output {path}: its line {count} is not the answer to "
                    f"{'a line' if line is None else f'line {line.number}'} of this input under these options; "
                    "--overwrite starts anew"
                )
            errors += found[1]
            size += len(raw)
    return Kept(count, errors, size)


def _key(raw: bytes) -> tuple[str | None, bool]:
    """The key of an answer and whether it is an error; no key where the line is no answer."""
    try:
        answer = json.loads(raw)
    except ValueError:
        return None, False
    return (answer.get("key"), "error" in answer) if isinstance(answer, dict) else (None, False)


class AnswerFile:
    """Writes answers behind those that are kept; each line is on its way to the disk when `write` returns.

    Args:
        path: None for stdout.
        kept: bytes of the file that stay.
    """

    def __init__(self, path: Path | None, kept: int = 0):
        self._path = path
        self._file: BufferedIOBase | None = None
        if path is None:
            return
        try:
            if path.exists() and not path.is_file():
                self._file = path.open("wb")
                return
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(kept)
            self._file.seek(kept)
        except OSError as error:
            raise RequestError(f"--output {path}: the file cannot be written: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be written has been told
                self._file.close()

    def write(self, answer: dict[str, Any]) -> None:
        """One answer as a line."""
        line = json.dumps(answer, ensure_ascii=False) + "\n"
        if self._file is None:
            write(line)
            return
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise RequestError(f"--output {self._path}: the file cannot be written: {error.strerror}") from error
