"""A bar of the steps of a run below its lines, where stderr is a terminal; a file or a pipe gets the lines alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from modelwright.cli.console import errors


@contextmanager
def training_bar() -> Iterator[Callable[[int, int, str], None] | None]:
    """What a report calls after every step with (step, steps, line); None where there is no terminal."""
    if not errors.is_terminal:
        yield None
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda step, steps, line: bars.update(task, completed=step, total=steps)
