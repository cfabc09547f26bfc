"""``modelwright generate``: answers a file of prompts, line by line and in order, and goes on where it was stopped."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from modelwright.cli import terminal
from modelwright.cli.answers import AnswerFile, Kept, whole_answers
from modelwright.cli.asking import Reader
from modelwright.cli.batch_run import BatchRun, Progress
from modelwright.cli.console import errors, say
from modelwright.cli.generate_options import STANDARD, GenerateOptions
from modelwright.cli.interrupt import INTERRUPTED, Interrupt
from modelwright.cli.lines import Line, read_lines
from modelwright.cli.oddities import Watched
from modelwright.cli.source import open_lines
from modelwright.serving.load import pick_device
from modelwright.serving.opened import Named, find_model
from modelwright.serving.prompts import read_template
from modelwright.serving.quiet import quieten_libraries
from modelwright.serving.ranks import Ranks

SOME_FAILED = 1
"""The exit status of a run in which a line could not be answered."""


def run_generate(options: GenerateOptions) -> int:
    """Look at the input and at what is answered already, load, and answer the rest; returns the exit status."""
    quieten_libraries()
    with Ranks(options.machine.tensor_parallel, options.machine.device, say) as ranks:
        return ranks.follow() if ranks.follows else _run(options, ranks)


def _run(options: GenerateOptions, ranks: Ranks) -> int:
    pick_device(options.machine.device)
    model = find_model(options.model)
    settings = {"model": options.model, "sampling": options.defaults(), "dtype": options.machine.dtype}
    settings["kv_dtype"] = options.engine.kv_dtype or "auto"
    if options.engine.batch_invariant:
        settings["batch_invariant"] = True
    template = read_template(options.chat_template)
    settings |= {} if template is None else {"chat_template": template}
    path = None if options.output == STANDARD else options.output
    with open_lines(options.input) as source:
        lines = Watched(read_lines(source, settings))
        kept = Kept() if path is None or options.overwrite else whole_answers(path, lines)
        with AnswerFile(path, kept.bytes) as file:
            try:
                status = _answer(options, model, template, lines, kept, file, ranks)
            except KeyboardInterrupt:
                return INTERRUPTED
    for sentence in lines.told():
        say(f"modelwright: {sentence}")
    return status


def _answer(
    options: GenerateOptions,
    model: Named,
    template: str | None,
    lines: Iterator[Line],
    kept: Kept,
    file: AnswerFile,
    ranks: Ranks,
) -> int:
    """Answer `lines`, of which there may be none left, and say on stderr what came of it."""
    first = next(lines, None)
    if first is None:
        return _report(options.output, kept, Progress(), 0.0, stopped=False)
    opened = terminal.load(model, "generate", options.engine.given(), options.machine, ranks, template=template)
    run = BatchRun(opened.engine, Reader(opened, options.defaults(), template), file.write)
    rest, start = chain([first], lines), time.perf_counter()
    with Interrupt() as stop, _bar(options.input, kept.lines) as show:
        while not stop.asked and run.step(rest):
            show(run.progress)
    ranks.let_go(opened.engine)
    return _report(options.output, kept, run.progress, time.perf_counter() - start, stop.asked)


def _report(output: Path, kept: Kept, done: Progress, seconds: float, stopped: bool) -> int:
    """One line on stderr; returns the exit status."""
    written = kept.lines + done.lines
    parts = [f"{written} line{'s' * (written != 1)}"]
    if kept.lines:
        parts.append(f"{kept.lines} from before")
    if failed := kept.errors + done.errors:
        parts.append(f"{failed} of them error{'s' * (failed != 1)}")
    if done.tokens:
        parts.append(f"{done.tokens} tokens in {seconds:.1f} s")
    why = f" (the first: {done.first_error})" if done.first_error else ""
    name = "stdout" if output == STANDARD else str(output)
    say(f"{name}: {', '.join(parts)}{why}{'; the same command goes on from here' if stopped else ''}")
    return INTERRUPTED if stopped else SOME_FAILED if failed else 0


@contextmanager
def _bar(source: Path, kept: int) -> Iterator[Callable[[Progress], None]]:
    """A bar of the lines written, gone when they are; nothing where stderr is no terminal."""
    if not errors.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, TextColumn("{task.description}"), console=errors, transient=True) as bars:
        task, start = bars.add_task("", total=_count(source), completed=kept), time.perf_counter()

        def show(done: Progress) -> None:
            rate = done.tokens / (time.perf_counter() - start)
            failed = f", {done.errors} errors" if done.errors else ""
            bars.update(task, completed=kept + done.lines, description=f"{rate:.0f} tokens/s{failed}")

        yield show


def _count(source: Path) -> int | None:
    """How many lines there are to answer; None for stdin and for a pipe, which are read once."""
    if source == STANDARD or not source.is_file():
        return None
    with source.open("rb") as lines:
        return _filled(lines)


def _filled(lines: Iterable[bytes]) -> int:
    return sum(1 for line in lines if line.strip())
