"""The console of the commands that run models: what is worth knowing at load, and a bar while weights are read."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich import progress as bars

from modelwright.checkpoints.shards import Progress
from modelwright.cli.console import errors, say
from modelwright.cli.options import Machine
from modelwright.ops.backends.cpu.compiler import progress as compiling
from modelwright.serving.opened import Named, Opened, open_model
from modelwright.serving.ranks import Ranks


def load(
    model: Named,
    task: str,
    limits: Mapping[str, Any],
    machine: Machine,
    ranks: Ranks,
    template: str | None = None,
) -> Opened:
    """`open_model` with a bar; what the user should know of how the model is computed is said in a line each."""
    with kernels_compiling(), loading_bar(model.name) as progress:
        opened = open_model(
            model,
            task=task,
            limits=limits,
            ranks=ranks,
            dtype=machine.dtype,
            device=machine.device,
            progress=progress,
            template=template,
        )
        notices = opened.notices()
    for notice in notices:
        say(f"modelwright: {notice}")
    return opened


class _Said(logging.Handler):
    """Shows what a logger says."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"modelwright: {record.getMessage()}")


@contextmanager
def kernels_compiling() -> Iterator[None]:
    """Say so where kernels are compiled meanwhile, which happens once and takes half a minute."""
    handler, before = _Said(), (compiling.level, compiling.propagate)
    compiling.addHandler(handler)
    compiling.setLevel(logging.WARNING)
    compiling.propagate = False
    try:
        yield
    finally:
        compiling.removeHandler(handler)
        compiling.setLevel(before[0])
        compiling.propagate = before[1]


@contextmanager
def loading_bar(name: str) -> Iterator[Progress | None]:
    """A bar of the bytes of weights read, gone when they are; nothing where stderr is no terminal."""
    if not errors.is_terminal:
        yield None
        return
    columns = (
        bars.TextColumn("loading {task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TimeElapsedColumn(),
    )
    with bars.Progress(*columns, console=errors, transient=True) as shown:
        task = shown.add_task(name, total=None)
        yield lambda _, done, total: shown.update(task, completed=done, total=total)
