"""Where words go: answers to stdout as they come, everything else to stderr; nothing here knows a model."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import transformers
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from modelwright.models.pretrained import Progress as LoadProgress

errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def say(message: str) -> None:
    """One line on stderr."""
    errors.print(message)


def write(text: str) -> None:
    """A piece of an answer, shown at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def quieten_libraries() -> None:
    """Keep the libraries' warnings and bars from the user, who can act on none of them."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("modelwright").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextmanager
def loading_bar(name: str) -> Iterator[LoadProgress | None]:
    """A bar of the bytes of weights read, gone when they are; nothing where stderr is no terminal."""
    if not errors.is_terminal:
        yield None
        return
    columns = (TextColumn("loading {task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as bars:
        task = bars.add_task(name, total=None)
        yield lambda _, done, total: bars.update(task, completed=done, total=total)
