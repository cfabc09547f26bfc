"""stdin, stdout and stderr as they may be handed to a command: closed, full, or with bytes that are no UTF-8."""

import contextlib
import errno
import io
import os
import sys
from pathlib import Path


def open_streams() -> None:
    """Let the three streams be there, and carry any text.

    In the place of a closed one stands a stream whose use fails as that of a closed one does, so that no file is opened
    under its number. Bytes on stdin that are no UTF-8 are kept to be told about, and a mark of its byte order is not
    text; what a terminal cannot show of an answer is replaced.
    """
    for number, (name, way) in enumerate((("stdin", os.O_WRONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY))):
        if getattr(sys, name) is None and _is_closed(number):
            handle = os.open(os.devnull, way)
            if handle != number:
                os.dup2(handle, number)
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "r" if number == 0 else "w"), "utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        if sys.stdin.isatty():
            sys.stdin.reconfigure(errors="surrogateescape")
        else:
            sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")


def is_stdout(path: Path) -> bool:
    """Whether what is written to ``path`` goes where stdout goes: ``/dev/stdout``, or the file that it is led to."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(1))
    except OSError:  # there is none of the two
        return False


def as_text(word: str) -> str:
    """An argument whose bytes are UTF-8, read as that where the system's own encoding is another; else as it came."""
    if is_text(word):
        return word
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:
        return word


def is_text(text: str) -> bool:
    """Whether it came as UTF-8: other bytes of stdin or of an argument are kept as halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def flush_stdout() -> None:
    """Write what waits; an OSError where that cannot be done, after which nothing waits any more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        discard_stdout()
        raise


def discard_stdout() -> None:
    """Let go of what waits to be written and cannot be, so that the interpreter does not try again at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        handle = os.open(os.devnull, os.O_WRONLY)
        os.dup2(handle, sys.stdout.fileno())
        os.close(handle)
        sys.stdout.flush()


def sentence(error: OSError) -> str:
    """What the system refused, in words: the file if it names one."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        name = error.filename if isinstance(error.filename, str) else os.fsdecode(error.filename)
        return f"{name}: {reason}"
    return f"stdout cannot be written: {reason}" if error.errno in _OF_WRITING else f"the system refuses it: {reason}"


_OF_WRITING = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG, errno.EDQUOT, errno.EPIPE)


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False
