"""A model without tensors, which notices every page that holds something else than it should."""

from collections import Counter
from itertools import groupby
from zlib import crc32

from modelwright.engine.blocks import BlockPool
from modelwright.engine.scheduler import Scheduler
from modelwright.engine.sequence import Sequence
from modelwright.engine.step import Chunk, Direction, Move, Step

STOP = 0
VOCABULARY = 23


def mix(*values: object) -> int:
    return crc32(repr(values).encode())


def keys_of(sequence: Sequence) -> list:
    return [*(sequence.keys or sequence.prompt), *sequence.generated]


def draw(id: str, history: int) -> int:
    """The next token; only those named "stops..." ever draw `STOP`."""
    token = mix(id, history) % VOCABULARY
    return token if id.startswith("stops") else max(token, STOP + 1)


def alone(sequence: Sequence) -> list[int]:
    """What a sequence generates with nobody beside it."""
    history, drawn = mix(sequence.salt), []
    for key in sequence.keys or sequence.prompt:
        history = mix(history, key)
    while len(drawn) < sequence.max_tokens and (not drawn or drawn[-1] != STOP):
        drawn.append(draw(sequence.id, history))
        history = mix(history, drawn[-1])
    return drawn


class PagedMachine:
    """Runs steps on pages of numbers, as a model would on pages of keys and values.

    A slot holds its token's history: a number that depends on the salt and on all keys up to that position.
    """

    def __init__(self, pool: BlockPool, host_pages: int = 0):
        self.pool = pool
        self.pages: list[list[int | None]] = [[None] * pool.block_size for _ in range(pool.num_blocks)]
        self.host: list[list[int | None]] = [[None] * pool.block_size for _ in range(host_pages)]
        self._histories: dict[str, list[int]] = {}

    def run(self, step: Step) -> dict[str, int]:
        """The tokens drawn in a step, after checking that each chunk finds its past and writes to its own pages."""
        for _, together in groupby(step.moves, key=lambda move: move.direction):
            self._move(list(together))
        written: Counter[tuple[int, int]] = Counter()
        for chunk in step.chunks:
            written.update(self._write(chunk))
        assert max(written.values(), default=0) <= 1, "two chunks write to one slot"
        sampled = {}
        for chunk in step.chunks:
            assert self._read(chunk.sequence, chunk.end) == self._history(chunk.sequence)[: chunk.end]
            for sequence in chunk.draws:
                sampled[sequence.id] = draw(sequence.id, self._history(chunk.sequence)[chunk.end - 1])
        return sampled

    def spoil(self, step: Step) -> None:
        """A pass that fails half-way: whatever it may write is garbage."""
        for move in step.moves:
            self._pools(move)[1][move.target] = [None] * self.pool.block_size
        for chunk in step.chunks:
            for page, offset in self._slots(chunk):
                self.pages[page][offset] = None

    def _move(self, moves: list[Move]) -> None:
        """All sources read first, which must be the same as one after the other."""
        sources, targets = self._pools(moves[0])
        read = {move.target: list(sources[move.source]) for move in moves}
        assert len(read) == len(moves), "two copies have one target"
        for move in moves:
            targets[move.target] = list(sources[move.source])
        assert all(targets[target] == content for target, content in read.items())

    def _pools(self, move: Move) -> tuple[list, list]:
        """Where a move reads and where it writes."""
        sources = self.host if move.direction is Direction.BACK else self.pages
        return sources, self.host if move.direction is Direction.OUT else self.pages

    def _slots(self, chunk: Chunk) -> list[tuple[int, int]]:
        size = self.pool.block_size
        return [(chunk.sequence.table[i // size], i % size) for i in range(chunk.start, chunk.end)]

    def _write(self, chunk: Chunk) -> list[tuple[int, int]]:
        history = self._history(chunk.sequence)
        assert len(chunk.sequence.table) == self.pool.pages_for(chunk.end)
        slots = self._slots(chunk)
        for position, (page, offset) in enumerate(slots, chunk.start):
            assert self.pool.references(page) == 1, f"{chunk.sequence.id} writes to a page that others see"
            self.pages[page][offset] = history[position]
        return slots

    def _read(self, sequence: Sequence, end: int) -> list[int | None]:
        return [slot for page in sequence.table for slot in self.pages[page]][:end]

    def _history(self, sequence: Sequence) -> list[int]:
        known = self._histories.setdefault(sequence.id, [])
        if len(known) < len(sequence.tokens):
            before = known[-1] if known else mix(sequence.salt)
            for key in keys_of(sequence)[len(known) :]:
                before = mix(before, key)
                known.append(before)
        return known


def advance(scheduler: Scheduler, machine: PagedMachine) -> Step:
    """Plan a step, run and commit it."""
    step = scheduler.schedule()
    complete(scheduler, step, machine.run(step))
    return step


def complete(scheduler: Scheduler, step: Step, sampled: dict[str, int]) -> tuple[Sequence, ...]:
    return scheduler.commit(step, sampled, {id: "stop" for id, token in sampled.items() if token == STOP})


def check_step(scheduler: Scheduler, step: Step) -> None:
    """A plan keeps to the limits."""
    settings = scheduler.settings
    assert len(scheduler.running) <= settings.max_batch
    assert step.tokens == sum(chunk.count for chunk in step.chunks)
    assert all(chunk.count >= 1 and chunk.end <= len(chunk.sequence.tokens) for chunk in step.chunks)
    assert len({chunk.sequence for chunk in step.chunks}) == len(step.chunks)
    assert all(chunk.samples == (chunk.end == len(chunk.sequence.tokens)) for chunk in step.chunks)
    assert not {sequence.id for sequence in step.preempted} & {chunk.sequence.id for chunk in step.chunks}
    if settings.chunk_prefill:
        assert step.tokens <= settings.token_budget
    else:
        assert step.tokens <= settings.token_budget or len(step.chunks) == 1
        assert all(chunk.samples for chunk in step.chunks)


def check_books(scheduler: Scheduler) -> None:
    """References are exactly the tables, nobody who waits holds a page, and every page is somewhere."""
    pool, usage = scheduler.pool, scheduler.pool.usage
    held = Counter(page for sequence in scheduler.running for page in sequence.table)
    assert [pool.references(page) for page in range(pool.num_blocks)] == [held[n] for n in range(pool.num_blocks)]
    assert usage.used == len(held)
    assert usage.used + usage.cached + usage.free == pool.num_blocks
    assert all(not sequence.table and sequence.computed == 0 for sequence in scheduler.waiting)
    stored = [page for sequence in scheduler.waiting for page in sequence.stored]
    assert len(set(stored)) == len(stored) == scheduler.host.used, "pages on the host are lost or mixed up"
    assert all(len(sequence.stored) == pool.pages_for(sequence.kept) for sequence in scheduler.waiting)
    assert not any(sequence.stored or sequence.kept for sequence in scheduler.running)
    assert all(len(set(sequence.table)) == len(sequence.table) for sequence in scheduler.running)
