"""Rows of files to the steps of a run: in an order that only the seed fixes, resumed at any step bit for bit.

What a run has read is one cursor of a global order. Workers make documents ahead and hold no state; whatever they have
made ahead, the state is that of what was handed out.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from modelwright.data.cache import Prepared, prepared_of
from modelwright.data.collate import collate
from modelwright.data.documents import Batches, Document, Encoder, StepBatch
from modelwright.data.examples import Source
from modelwright.data.mixture import Draw
from modelwright.data.prefetch import Prefetched
from modelwright.data.settings import DataSettings, SourceSettings
from modelwright.data.sources import open_source
from modelwright.data.stream import Cursor, MadeRow, RowStream
from modelwright.data.workers import Workers
from modelwright.errors import CheckpointError, ConfigError, RequestError

STEPS_AHEAD = 2
"""Steps that are made ready ahead of the loop where there are workers."""
_FIXED = ("shuffle", "pack", "window", "seq_length", "truncate", "labels", "on_error", "drop_last")
"""Settings of ``data`` on which the order depends, or what stands in a row."""


class RunBatches:
    """See `Batches`.

    An epoch has as many rows of the files as all sources hold together. Its last step holds what is left, so that every
    row of a single source is learned once an epoch, whatever the size of a step; ``drop_last`` leaves it out instead.
    The first ``skip`` steps of a run are passed over.

    Args:
        sources: of rows, by their numbers.
        weights: of each source in the mixture.
        encoder: makes documents.
        part: the section ``data`` of the run.
        micro: rows of a pass.
        rows_of_step: rows of a step.
        seed: of the order.
        pad_id: what fills the tail of a row; None leaves it to the encoder.
        prepared: the documents of each source that were made before (`cache.prepared_of`).
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        encoder: Encoder,
        part: DataSettings,
        micro: int,
        rows_of_step: int,
        seed: int = 0,
        pad_id: int | None = None,
        prepared: Sequence[Prepared | None] = (),
    ):
        self.micro, self.rows_of_step, self.drop_last, self.skip = micro, rows_of_step, part.drop_last, part.skip
        self.packs = part.pack == "documents" and encoder.packs
        self.pad_id = encoder.pad_id if pad_id is None else pad_id
        self._settings = {name: getattr(part, name) for name in _FIXED}
        self._settings |= {"seed": seed, "weights": [*weights]}
        self._workers = Workers(encoder, part.workers)
        self._rows = RowStream(sources, weights, part, seed, self.packs, self._workers, prepared)
        self._at = self._rows.start()
        self._steps: Iterator[tuple[StepBatch, Cursor]] | None = None
        self._files: list[list[dict[str, Any]]] | None = None

    def sources(self) -> list[dict[str, Any]]:
        """See `Batches`."""
        return [
            {"name": each.name, "format": each.format, "rows": len(each), "unread": each.unread()}
            for each in self._rows.sources
        ]

    def steps_in(self, epochs: int) -> int:
        """See `Batches`."""
        return self._steps_of(self._rows.count(epochs))

    def steps_left(self, epochs: int) -> int:
        """See `Batches`."""
        return max(self._steps_of(self._rows.count(epochs, self._at)) - self._passed_over(self._at), 0)

    def steps_until(self, epochs: int) -> int:
        """See `Batches`."""
        for end in itertools.count((self._epoch // epochs + 1) * epochs, epochs):
            rows = self._rows.count(end, self._at)
            steps = self._steps_of(rows)
            left = steps - self._passed_over(self._at)
            if left > 0 or (len(rows) > 1 and not steps):  # of a whole epoch: whoever asks for the next is told why
                return max(left, 1)
        raise AssertionError

    def tokens_in(self, epochs: int) -> int:
        """See `Batches`."""
        return self._rows.tokens(epochs)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StepBatch:
        if self._steps is None:
            steps = self._made(self._at)
            self._steps = Prefetched(steps, STEPS_AHEAD) if self._workers.count else steps
        step, self._at = next(self._steps)
        return step

    def state(self) -> dict[str, Any]:
        """See `Batches`."""
        return {
            "epoch": self._epoch,
            "cursor": asdict(self._at) | {"counts": [*self._at.counts]},
            "settings": self._settings,
            "files": self._fingerprints(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See `Batches`."""
        for name, then in state["settings"].items():
            if self._settings[name] != then:
                raise CheckpointError(
                    f"{name} of the data was {then!r} when the checkpoint was written and is {self._settings[name]!r}: "
                    "rows would come in another order, and some of them twice"
                )
        _require_same(state["files"], self._fingerprints())
        self._stop()
        self._at = Cursor(**state["cursor"] | {"counts": tuple(state["cursor"]["counts"])})

    def close(self) -> None:
        """See `Batches`."""
        self._workers.close()
        self._stop()

    @property
    def _epoch(self) -> int:
        """The epoch of the next row, from 0; where its window was the last one, the epoch before."""
        return sum(self._at.counts) // self._rows.per_epoch

    def _steps_of(self, rows: Iterable[int]) -> int:
        share = math.floor if self.drop_last else math.ceil
        return sum(share(each / self.rows_of_step) for each in rows)

    def _passed_over(self, at: Cursor) -> int:
        return self.skip if at == self._rows.start() else 0

    def _stop(self) -> None:
        if isinstance(self._steps, Prefetched):
            self._steps.close()
        self._steps = None

    def _fingerprints(self) -> list[list[dict[str, Any]]]:
        if self._files is None:
            self._files = [source.fingerprint() for source in self._rows.sources]
        return self._files

    def _made(self, at: Cursor) -> Iterator[tuple[StepBatch, Cursor]]:
        """Steps from a place on, each with the place after it."""
        skip = self._passed_over(at)
        for number, rows in enumerate(self._rows_of_steps(at)):
            if number >= skip:
                yield self._step(rows), rows[-1].after

    def _rows_of_steps(self, at: Cursor) -> Iterator[list[MadeRow]]:
        waiting: list[MadeRow] = []
        full, ends = False, 0
        for row in self._rows.made(at):
            if waiting and waiting[-1].epoch != row.epoch:
                ends += 1
                if not self.drop_last:
                    yield waiting
                elif ends > 1 and not full:  # a run may have begun near the end of the first one
                    raise RequestError(
                        f"a step needs batch.global ({self.rows_of_step}) rows, and an epoch has {len(waiting)}: with "
                        "data.drop_last no step is ever full"
                    )
                waiting = []
            waiting.append(row)
            if len(waiting) == self.rows_of_step:
                yield waiting
                waiting, full = [], True

    def _step(self, made: Sequence[MadeRow]) -> StepBatch:
        rows = [row.documents for row in made]
        documents = [document for row in rows for document in row]
        return StepBatch(
            micro=tuple(passes(rows, self.micro, self.pad_id, self.packs)),
            counted=sum(document.counted for document in documents),
            tokens=sum(map(len, documents)),
            sequences=len(documents),
            places=tuple(document.place for document in documents),
            broken=made[-1].broken,
        )


class HeldOut:
    """The rows of one source of ``data.eval``, each alone in its row, in their order; may be iterated again.

    Args:
        source: the rows.
        encoder: makes documents.
        part: the section ``data`` of the run; rows that are broken are left out where ``on_error`` says so.
        micro: rows of a pass.
        pad_id: what fills the tail of a row.
        prepared: its documents, where they were made before.
        limit: how many of its first rows there are at most.
    """

    def __init__(
        self,
        source: Source,
        encoder: Encoder,
        part: DataSettings,
        micro: int,
        pad_id: int,
        prepared: Prepared | None = None,
        limit: int | None = None,
    ):
        self.source, self._micro, self._pad_id = source, micro, pad_id
        self.rows = len(source) if limit is None else min(limit, len(source))
        self._rows = RowStream([source], [1.0], part, 0, False, Workers(encoder, 0), [prepared])

    def __len__(self) -> int:
        """How many passes there are, where no row is left out."""
        return math.ceil(self.rows / self._micro)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        waiting: list[tuple[Document]] = []
        for number in range(self.rows):
            document = self._rows.settle(self._rows.submit(Draw(0, number), outline=False))
            waiting += [] if document is None else [(document,)]
            if len(waiting) == self._micro:
                yield collate(waiting, self._pad_id, packed=False)
                waiting = []
        if waiting:
            yield collate(waiting, self._pad_id, packed=False)


def passes(rows: Sequence[Sequence[Document]], micro: int, pad_id: int, packed: bool) -> Iterator[dict[str, Tensor]]:
    """The model's arguments for rows, ``micro`` of them at a time, the last time what is left."""
    for start in range(0, len(rows), micro):
        yield collate(rows[start : start + micro], pad_id, packed)


def open_batches(
    part: DataSettings,
    encoder: Encoder,
    micro: int,
    global_: int,
    seed: int = 0,
    pad_id: int | None = None,
    base: Path | None = None,
) -> Batches:
    """The steps of ``data.train``.

    Args:
        part: the section ``data`` of the run.
        encoder: makes documents (`encoding.encoder_of`).
        micro, global_: rows of a pass, and of a step.
        seed: of the order.
        pad_id: what fills the tail of a row; None leaves it to the encoder.
        base: the folder that paths are relative to; None for the one that this process runs in.

    Raises:
        ConfigError: there is no source, or a format is unknown.
        RequestError: a file is missing or damaged.
    """
    if not part.train:
        raise ConfigError("data.train must name at least one source of rows")
    sources = [_opened(each, part, base) for each in part.train]
    weights = [each.weight for each in part.train]
    prepared = [prepared_of(source, encoder, _cache(part, base)) for source in sources]
    return RunBatches(sources, weights, encoder, part, micro, global_, seed, pad_id, prepared)


def held_out(
    part: DataSettings,
    encoder: Encoder,
    micro: int = 1,
    pad_id: int | None = None,
    base: Path | None = None,
    limit: int | None = None,
) -> Mapping[str, HeldOut]:
    """The sources of ``data.eval`` by their names, see `HeldOut`; raises as `open_batches`."""
    padding = encoder.pad_id if pad_id is None else pad_id
    sources = [_opened(each, part, base) for each in part.eval]
    prepared = [prepared_of(source, encoder, _cache(part, base)) for source in sources]
    return {
        source.name: HeldOut(source, encoder, part, micro, padding, made, limit)
        for source, made in zip(sources, prepared, strict=True)
    }


def _opened(source: SourceSettings, part: DataSettings, base: Path | None) -> Source:
    root = None if part.root is None else Path(part.root)
    return open_source(source, root, Path.cwd() if base is None else base, _cache(part, base))


def _cache(part: DataSettings, base: Path | None) -> Path | None:
    return None if part.cache is None else (Path.cwd() if base is None else base) / part.cache


def _require_same(then: Sequence[Sequence[Mapping[str, Any]]], now: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Raise CheckpointError unless the files are those of the checkpoint; they may lie elsewhere by now."""
    if len(then) != len(now):
        raise CheckpointError(
            f"the checkpoint was written with {len(then)} sources of data, and now there are {len(now)}"
        )
    for before, after in zip(then, now, strict=True):
        for was, is_ in zip(before, after, strict=False):
            if (was["size"], was["sha256"]) != (is_["size"], is_["sha256"]):
                raise CheckpointError(
                    f"{is_['file']} has changed since the checkpoint was written: it had {was['size']} bytes (sha256 "
                    f"{was['sha256'][:12]}) and has {is_['size']} ({is_['sha256'][:12]}), so rows would come twice"
                )
        if len(before) != len(after):
            raise CheckpointError(
                f"a source of data had {len(before)} files when the checkpoint was written and has {len(after)} now"
            )
