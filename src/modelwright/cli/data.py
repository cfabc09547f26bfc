"""``modelwright data``: rows of a run as its model will see them, and their tokens made once for all."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from modelwright.checkpoints.source import find_folder
from modelwright.cli.console import errors, say, write
from modelwright.cli.data_rows import CLOSES, OPENS, STYLES, Piece, Row, pieces_of, plain
from modelwright.cli.train import TrainOptions, folder_of, read_checked
from modelwright.configs.run import RunConfig, SourcePart
from modelwright.data.batches import open_batches
from modelwright.data.cache import Prepared, key_of, prepare
from modelwright.data.documents import Encoder
from modelwright.data.examples import BrokenRow, Source
from modelwright.data.identity import identity_of
from modelwright.data.sources import open_source
from modelwright.data.workers import Workers
from modelwright.errors import ConfigError
from modelwright.training.build import found_at, unread_of
from modelwright.training.encoder import processor_in, run_encoder

_REASONS = 5
"""Broken rows that are named."""


@dataclass(frozen=True)
class DataRun:
    """A run with what makes documents of its rows, and the folder that its paths are relative to."""

    run: RunConfig
    base: Path
    encoder: Encoder

    @classmethod
    def read(cls, file: Path, overrides: Iterable[str]) -> "DataRun":
        """Read the run and the processor of its model, whose weights are not opened."""
        logging.getLogger("transformers").setLevel(logging.ERROR)
        run, model = read_checked(TrainOptions(file, tuple(overrides)))
        base = folder_of(run, file)
        processor = processor_in(_processor_folder(run, base), model)
        return cls(run, base, run_encoder(run.data, model, processor))

    def source(self, part: SourcePart) -> Source:
        """One of its sources, opened."""
        data = self.run.data
        root, cache = (None if each is None else Path(each) for each in (data.root, self.cache))
        return open_source(part, root, self.base, cache)

    @property
    def cache(self) -> Path | None:
        """``data.cache``, relative to the run file."""
        return None if self.run.data.cache is None else self.base / self.run.data.cache


def show_data(file: Path, overrides: Sequence[str], rows: int, held_out: bool) -> None:
    """Print the first rows of a run, as they come in its order, or those that are held out of it."""
    given = DataRun.read(file, overrides)
    parts = given.run.data.eval if held_out else given.run.data.train
    if not parts:
        raise ConfigError("data.eval names no rows: give it files, such as data.eval=held_out.jsonl")
    for part in parts:
        source = given.source(part)
        say(f"{source.name}: {source.format}, {_counted(len(source), 'row')}")
        if (sentence := unread_of(source.name, source.unread())) is not None:
            say(sentence)
    data = replace(given.run.data, train=parts, workers=0)
    console = Console(highlight=False, soft_wrap=True)
    coloured = console.is_terminal and not console.no_color
    say("what is learned is green" if coloured else f"what is learned stands in {OPENS} {CLOSES}")
    batches = open_batches(data, given.encoder, 1, 1, given.run.seed, base=given.base)
    try:
        for _ in range(rows):
            pieces = [*pieces_of(Row.of(next(batches)), given.encoder)]
            if coloured:
                console.print(_coloured(pieces))
            else:
                write(plain(pieces) + "\n")
    finally:
        batches.close()


def prepare_data(file: Path, overrides: Sequence[str]) -> None:
    """Make the documents of all sources of a run, and say what there is."""
    given = DataRun.read(file, overrides)
    data, cache = given.run.data, given.cache
    if cache is None:
        raise ConfigError("data.cache must name the folder that prepared tokens go to, such as data.cache=cache")
    identity = identity_of(given.encoder)
    workers = Workers(given.encoder, data.workers)
    try:
        for part in (*data.train, *data.eval):
            source = given.source(part)
            with _bar(source.name, len(source)) as step:
                prepared = prepare(
                    source,
                    workers,
                    cache,
                    key_of(source, identity),
                    skips=data.on_error == "skip",
                    cuts=data.truncate == "end",
                    progress=lambda row, step=step: step(row + 1),
                )
            write("\n".join(_described(source, prepared)) + "\n")
    finally:
        workers.close()


def _processor_folder(run: RunConfig, base: Path) -> Path:
    named = run.model.processor or run.model.path
    if named is None:
        raise ConfigError("model.processor must name the folder of the tokenizer, because model.config brings none")
    return find_folder(found_at(named, base), {})


def _coloured(pieces: Iterable[Piece]) -> Text:
    return Text.assemble(*((each.text, STYLES[each.kind]) for each in pieces))


def _described(source: Source, prepared: Prepared) -> Iterable[str]:
    told = prepared.manifest
    counts = f"{_counted(told['rows'], 'row')}, {told['tokens']:,} tokens, {told['learned']:,} learned"
    pictures = f", {_counted(told['pictures'], 'picture')}" if told["pictures"] else ""
    yield f"{source.name}: {source.format}, {counts}{pictures}, in {prepared.folder}"
    broken = [int(row) for row in told["broken"]]
    if broken:
        yield f"  left out: {_counted(len(broken), 'row')}{', of which the first are' * (len(broken) > _REASONS)}"
    for row in broken[:_REASONS]:
        try:
            prepared.outline(row)
        except BrokenRow as error:
            yield f"  {error}"


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}{'s' * (number != 1)}"


@contextmanager
def _bar(name: str, rows: int) -> Iterator[Callable[[int], object]]:
    """A bar of the rows that are made, gone when they are; nothing where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(name, total=rows)
        yield lambda done: progress.update(task, completed=done)
