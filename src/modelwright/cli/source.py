"""Lines of text from a file or from stdin, as they come; bytes that are no UTF-8 are kept to be told about."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelwright.errors import RequestError


@contextmanager
def open_lines(path: Path) -> Iterator[Iterable[str]]:
    """The lines of `path`; ``-`` is stdin. A RequestError where it cannot be read."""
    if str(path) == "-":
        yield _of_stdin()
        return
    try:
        file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n")
    except OSError as error:
        raise RequestError(f"--input {path}: the file cannot be read: {error.strerror}") from error
    with file:
        yield file


def check_input(path: Path) -> None:
    """Raise a RequestError where no lines can be read: nothing is there, or a folder. Pipes and devices are read."""
    if str(path) == "-":
        return
    if path.is_dir():
        raise RequestError(f"--input {path} is a folder; it must be a file")
    if not path.exists():
        raise RequestError(f"--input {path}: there is no such file")


def _of_stdin() -> Iterator[str]:
    try:
        yield from iter(sys.stdin.readline, "")
    except OSError as error:
        raise RequestError(f"stdin cannot be read: {error.strerror}") from error
