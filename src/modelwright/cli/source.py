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
        yield iter(sys.stdin.readline, "")
        return
    try:
        file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n")
    except OSError as error:
        raise RequestError(f"--input {path}: the file cannot be read: {error.strerror}") from error
    with file:
        yield file
