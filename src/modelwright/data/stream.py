"""Rows of documents in the order of a run, from any place of it on; nothing here knows steps or tensors."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from modelwright.data.cache import Prepared
from modelwright.data.documents import Document
from modelwright.data.encoding.learning import Unlearned
from modelwright.data.examples import BrokenRow, Source
from modelwright.data.mixture import Draw, Draws
from modelwright.data.packing import pack
from modelwright.data.settings import DataSettings
from modelwright.data.workers import Workers
from modelwright.errors import RequestError

MOST_BROKEN = 100
"""One of so many rows of an epoch may be left out; more stop the run. One row always may be."""
ROWS_AHEAD = 2
"""Packed rows whose pictures are decoded ahead."""
_UNKNOWN, _LEFT_OUT = -1, 0
"""What stands for the length of a document that was not made yet, and of a row that was left out."""


@dataclass(frozen=True)
class Cursor:
    """A place in the order of a run's rows.

    Attributes:
        counts: rows of the files drawn from each source before the window that packing chooses among.
        rows: how many packed rows of that window come before the place.
        broken: rows of the files that were left out before that window.
        here: those of them that belong to the window's epoch.
        spoilt: rows that were left out of the packed rows before the place, because a picture could not be decoded.
    """

    counts: tuple[int, ...]
    rows: int = 0
    broken: int = 0
    here: int = 0
    spoilt: int = 0


@dataclass(frozen=True)
class MadeRow:
    """Documents that share a row.

    Attributes:
        documents: at least one.
        after: the place after it.
        epoch: from 0.
        broken: rows of the files left out so far.
    """

    documents: tuple[Document, ...]
    after: Cursor
    epoch: int
    broken: int


class RowStream:
    """The rows of a run.

    Documents are drawn in an order of their own each epoch. Where rows are packed, the documents of a window are put
    into as few rows as best fit finds, and those stand in the order of their first documents; no window reaches over
    the end of an epoch. Of a window only the lengths are needed, so pictures are decoded when their row is due.

    Args:
        sources: of rows, none of them empty.
        weights: of each source in the mixture.
        part: the section ``data`` of the run.
        seed: of the order.
        packs: whether documents share rows.
        workers: what makes documents.
        prepared: the documents of each source that were made before; none of all where it is left out.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        part: DataSettings,
        seed: int,
        packs: bool,
        workers: Workers,
        prepared: Sequence[Prepared | None] = (),
    ):
        self.sources, self.weights, self.part, self.seed = sources, weights, part, seed
        self.packs, self.workers = packs, workers
        self.lengths = [len(source) for source in sources]
        self.per_epoch = sum(self.lengths)
        self.prepared = [*prepared] or [None] * len(self.sources)
        self._tokens: list[np.ndarray] = []
        self._leaves_out = part.on_error == "skip" or part.truncate == "end"

    def start(self) -> Cursor:
        """The place before the first row."""
        return Cursor((0,) * len(self.sources))

    def made(self, at: Cursor) -> Iterator[MadeRow]:
        """The rows from a place on, without end.

        Raises:
            RequestError: a row is broken and none may be, or too many are, or a worker died.
        """
        feed = Feed(self, at.counts)
        barren = 0
        while True:
            epoch, done = divmod(sum(at.counts), self.per_epoch)
            at = replace(at, here=at.here if done else 0)
            size = min(self.part.window if self.packs else 1, self.per_epoch - done)
            found, counts = feed.take(size)
            kept = [(document, draw) for draw, future in found if (document := self.settle(future)) is not None]
            lost = size - len(kept)
            lengths = [len(document) for document, _ in kept]
            packed = pack(lengths, self.part.seq_length) if self.packs else [[0]][: len(kept)]
            self._require_few(at.here + lost + at.spoilt)
            spoilt, rows = at.spoilt, [[kept[number] for number in row] for row in packed]
            for number, futures in enumerate(feed.decoded(rows[at.rows :]), at.rows + 1):
                settled = [self.settle(future) for future in futures]
                documents = tuple(document for document in settled if document is not None)
                spoilt += len(futures) - len(documents)
                self._require_few(at.here + lost + spoilt)
                if self.packs:
                    feed.fill(size * number // len(rows))
                if documents:
                    barren = 0
                    yield MadeRow(documents, replace(at, rows=number, spoilt=spoilt), epoch, at.broken + lost + spoilt)
            barren += size
            if barren >= 2 * self.per_epoch:
                raise RequestError(f"nothing can be learned of the data: all {self.per_epoch} rows were left out")
            at = Cursor(counts, 0, at.broken + lost + spoilt, at.here + lost + spoilt)

    def count(self, epochs: int, at: Cursor | None = None) -> list[int]:
        """How many rows come from a place on, the beginning where it is left out, in each of the first epochs.

        Rows that only turn out to be broken when their pictures are decoded are taken to be whole.

        Raises:
            RequestError: as `made`.
        """
        at = self.start() if at is None else at
        drawn, before = sum(at.counts), at.rows
        draws, counted = self.draws(at.counts), []
        while drawn < epochs * self.per_epoch:
            left = self.per_epoch - drawn % self.per_epoch
            counted.append(self._rows_among(draws, left) - before)
            drawn, before = drawn + left, 0
        return counted

    def tokens(self, epochs: int) -> int:
        """How many real tokens the first epochs have; rows that are left out have none. Raises as `made`."""
        draws = self.draws(self.start().counts)
        return sum(map(sum, self._windows(draws, epochs * self.per_epoch)))

    def draws(self, counts: Sequence[int]) -> Draws:
        """The order of the files' rows after some of each source."""
        return Draws(self.lengths, self.weights, self.seed, self.part.shuffle, counts)

    def submit(self, draw: Draw, outline: bool) -> "Future[Document]":
        """The document of a row; a row that cannot be read is raised when it is asked for."""
        done: Future[Document] = Future()
        try:
            prepared = self.prepared[draw.source]
            known = None if prepared is None else prepared.outline(draw.row)
            if known is None or (known.is_outline and not outline):
                return self.workers.submit(self.sources[draw.source][draw.row], outline)
            done.set_result(known)
        except BrokenRow as error:
            done.set_exception(error)
        return done

    def settle(self, future: "Future[Document]") -> Document | None:
        """The document, or None where its row is left out.

        Raises:
            RequestError: the row is broken, and ``data.on_error`` is ``stop``.
        """
        try:
            return future.result()
        except BrokenRow as error:
            may_teach_nothing = isinstance(error, Unlearned) and self.part.truncate == "end"
            if self.part.on_error == "skip" or may_teach_nothing:
                return None
            raise

    def _rows_among(self, draws: Draws, count: int) -> int:
        """The rows that the next ``count`` documents stand in."""
        if not self.packs and not self._leaves_out:
            return count
        windows = self._windows(draws, count)
        return sum(len(pack(lengths, self.part.seq_length)) if self.packs else len(lengths) for lengths in windows)

    def _windows(self, draws: Draws, count: int) -> Iterator[list[int]]:
        """The lengths of the next ``count`` documents without those that are left out, a window at a time."""
        self._tokens = self._tokens or [self._known_lengths(number) for number in range(len(self.sources))]
        while count:
            size = min(self.part.window, count)
            yield self._lengths_of([draws.draw() for _ in range(size)])
            count -= size

    def _known_lengths(self, source: int) -> np.ndarray:
        """int32 [rows], the lengths of the documents that were made before."""
        prepared = self.prepared[source]
        if prepared is None:
            return np.full(self.lengths[source], _UNKNOWN, np.int32)
        return np.where(prepared.lengths > 0, prepared.lengths, _UNKNOWN).astype(np.int32)

    def _lengths_of(self, draws: Sequence[Draw]) -> list[int]:
        unknown = {draw for draw in draws if self._tokens[draw.source][draw.row] == _UNKNOWN}
        asked = [(draw, self.submit(draw, outline=True)) for draw in draws if draw in unknown]
        for draw, future in asked:
            document = self.settle(future)
            self._tokens[draw.source][draw.row] = _LEFT_OUT if document is None else len(document)
        lengths = [int(self._tokens[draw.source][draw.row]) for draw in draws]
        return [length for length in lengths if length != _LEFT_OUT]

    def _require_few(self, broken: int) -> None:
        if self.part.on_error == "skip" and broken > max(1, self.per_epoch // MOST_BROKEN):
            raise RequestError(
                f"{broken} of the epoch's {self.per_epoch} rows were left out, and at most 1 % may be: they are "
                "broken, too long or teach nothing; data.on_error: stop names the first"
            )


class Feed:
    """Documents of rows in their order, asked for ahead.

    Args:
        rows: whose they are.
        counts: rows drawn of each source before.
    """

    def __init__(self, rows: RowStream, counts: Sequence[int]):
        self._rows = rows
        self._draws = rows.draws(counts)
        self._coming: deque[tuple[Draw, Future[Document], tuple[int, ...]]] = deque()
        self._depth = 2 * rows.workers.count + 2
        """RowStream that lie read before workers take them: a row may hold the bytes of its pictures."""

    def fill(self, count: int) -> None:
        """Ask for documents until ``count`` are coming; without workers they would only be waited for."""
        while self._rows.workers.count and len(self._coming) < count:
            self._ask()

    def take(self, count: int) -> tuple[list[tuple[Draw, "Future[Document]"]], tuple[int, ...]]:
        """The next ``count`` documents, and the rows drawn of each source after them."""
        while len(self._coming) < count:
            self._ask()
        taken = [self._coming.popleft() for _ in range(count)]
        if not self._rows.packs:
            self.fill(self._depth)
        return [(draw, future) for draw, future, _ in taken], taken[-1][2]

    def decoded(self, rows: Iterable[Sequence[tuple[Document, Draw]]]) -> Iterator[list["Future[Document]"]]:
        """The documents of each row with the pixels of their pictures, some rows ahead."""
        ahead: deque[list[Future[Document]]] = deque()
        most = ROWS_AHEAD if self._rows.workers.count else 0
        for row in rows:
            ahead.append([self._with_pixels(document, draw) for document, draw in row])
            if len(ahead) > most:
                yield ahead.popleft()
        yield from ahead

    def _ask(self) -> None:
        if len(self._coming) >= self._depth:
            self._coming[-self._depth][1].exception()  # waits until it is made
        draw = self._draws.draw()
        self._coming.append((draw, self._rows.submit(draw, self._rows.packs), tuple(self._draws.counts)))

    def _with_pixels(self, document: Document, draw: Draw) -> "Future[Document]":
        if document.is_outline:
            return self._rows.submit(draw, outline=False)
        whole: Future[Document] = Future()
        whole.set_result(document)
        return whole
