"""The console of the commands that run models: the libraries kept quiet, and a bar while weights are read."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import transformers
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from modelwright.checkpoints.shards import Progress as LoadProgress
from modelwright.cli.console import errors as errors
from modelwright.cli.console import say as say
from modelwright.cli.console import write as write


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
