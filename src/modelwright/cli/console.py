"""stdout and stderr: answers to the one as they come, everything else to the other; imports no model library."""

import sys

from rich.console import Console

errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def say(message: str) -> None:
    """One line on stderr."""
    errors.print(message)


def write(text: str) -> None:
    """A piece of an answer, shown at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
