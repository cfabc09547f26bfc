"""stdout and stderr: answers to the one as they come, everything else to the other; imports no model library."""

import sys
from contextlib import suppress

from rich.console import Console

errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
_CONTROL = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_C1 = dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_DIRECTIONS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
_SHOWN = _CONTROL | _C1 | _DIRECTIONS


def say(message: str) -> None:
    """One line on stderr."""
    with suppress(OSError):  # a full or closed stderr stops no answer
        errors.print(harmless(message))


def write(text: str) -> None:
    """A piece of an answer, shown at once; what would command a terminal reaches a file or a pipe alone."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def harmless(text: str) -> str:
    """The text with a picture of each control character but ends of lines and tabs, and of no change of direction."""
    return text.translate(_SHOWN)
