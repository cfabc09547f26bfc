"""Lines of text from a file or from stdin, as they come; bytes that are no UTF-8 are kept to be told about."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelwright.cli.streams import is_text
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


def typed_text(text: str) -> str:
    """A text as it was typed; ``-`` is all of stdin without its last end of line.

    Raises:
        RequestError: nothing comes from there, or what is no text.
    """
    if text != "-":
        return text
    read = "".join(_of_stdin()).removesuffix("\n").removesuffix("\r")
    if not read.strip():
        raise RequestError("the prompt is empty: - is stdin, and nothing came from there")
    if not is_text(read):
        raise RequestError("what came from stdin is no text in UTF-8")
    return read


def _of_stdin() -> Iterator[str]:
    try:
        yield from iter(sys.stdin.readline, "")
    except OSError as error:
        raise RequestError(f"stdin cannot be read: {error.strerror}") from error
