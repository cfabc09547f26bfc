"""Files that appear whole or not at all: one way for all that a command writes in one piece."""

import errno
import os
import tempfile
from pathlib import Path

from modelwright.errors import RequestError


def check_place(path: Path, called: str) -> None:
    """Raise a RequestError unless a file can be written to ``path``, as far as that can be told before.

    Args:
        called: what the user calls the file, for the message: an option and its value.
    """
    if str(path) == "-":
        raise RequestError(f"{called}: - stands for a stream, and what is written here is a file: name one")
    if os.path.isdir(path):
        raise RequestError(f"{called}: it is a folder, and must be a file")
    if not os.path.isdir(path.parent):
        raise RequestError(f"{called}: there is no folder {path.parent}")
    place = path if os.path.exists(path) else path.parent
    if not _may_write(place):
        raise RequestError(f"{called}: the file cannot be written, since {place} is read-only") from OSError(
            errno.EROFS, os.strerror(errno.EROFS)
        )


def write_whole(path: Path, content: bytes, called: str) -> None:
    """Write a file beside its place and move it there; a device or a pipe gets the bytes as they are.

    What was there before stays until then, with its permissions, and a link stays a link.

    Args:
        called: what the user calls the file, for the message: an option and its value.

    Raises:
        RequestError: it cannot be written, for want of space say; nothing is left of it then.
    """
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                file.write(content)
            return
        _replace(Path(os.path.realpath(path)), content)
    except OSError as error:
        raise RequestError(f"{called}: the file cannot be written: {error.strerror or error}") from error


def _may_write(place: Path) -> bool:
    return os.access(place, os.W_OK)


def _replace(path: Path, content: bytes) -> None:
    if path.exists() and not _may_write(path.parent):  # a file that may be written in a folder that may not
        path.write_bytes(content)
        return
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
    try:
        with open(handle, "wb") as file:
            file.write(content)
        os.chmod(part, mode)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def _umask() -> int:
    """The permissions that this process withholds; asking changes them for a moment."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
