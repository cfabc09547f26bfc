"""`StepPlan`, which tokens the next step computes: grants under a budget, admission and preemption; no lifecycle."""

import sys
from collections.abc import Collection, Iterable
from heapq import merge
from itertools import islice

from modelwright.engine.queues import Queues
from modelwright.engine.ranking import rank_of
from modelwright.engine.sequence import Sequence
from modelwright.engine.step import Chunk, Move

UNLIMITED = sys.maxsize


class StepPlan:
    """One step in the making. `decodes` and `prompts` each grant what they can; then the results are read.

    Grants take their pages at once. A sequence that lacks pages takes them from running ones that rank behind it and
    have no grant yet, the last first; so what was granted stays granted.

    Args:
        queues: who runs and who waits; grants change them.
        budget: how many tokens there are to grant.
        max_running: how many sequences may run.
        chunk_prefill: whether prompts may be granted in parts.
        only: the sequences that may be granted any; None for all.
    """

    def __init__(
        self,
        queues: Queues,
        budget: int,
        max_running: int,
        chunk_prefill: bool,
        only: Collection[Sequence] | None = None,
    ):
        self._only = only
        self._queues, self._pool = queues, queues.pool
        self._left, self._max_running, self._chunk_prefill = budget, max_running, chunk_prefill
        self._granted: dict[Sequence, int] = {}
        self._underway: set[bytes] = set()  # names of pages that running prompts are about to fill
        self._full = False  # the best of the waiting found no room, or pages were just taken from another: none starts
        self.moves: list[Move] = []
        self.preempted: list[Sequence] = []

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """What was granted, in the order of the grants."""
        return tuple(self._chunk(sequence, count) for sequence, count in self._granted.items())

    def decodes(self) -> None:
        """A token for each running sequence that lacks only the last one, in the order of their ranks."""
        for sequence in [running for running in self._eligible(self._queues.running) if running.remaining == 1]:
            if sequence in self._queues.running and not self._grant(sequence, 1):
                self._preempt(sequence)

    def prompts(self) -> None:
        """What is left of the budget, for running prompts and for waiting ones that there is room for.

        While others wait, the prompt that ranks first gets half of it; the other half goes to prompts that it
        completes; what then is left goes to all in the order of their ranks. So short prompts pass long ones, and the
        first long one is never slower than half speed. Without `chunk_prefill` prompts are granted whole: the first
        whatever its length, then those that fit.
        """
        contenders = self._contenders()
        if not contenders or self._left == 0:
            return
        share = self._left if len(contenders) == 1 else max(1, self._left // 2)
        first = share if self._chunk_prefill else UNLIMITED
        next((None for sequence in contenders if self._read(sequence, first)), None)
        for sequence in contenders:
            self._read(sequence, self._left, whole=True)
        if self._chunk_prefill:
            for sequence in contenders:
                self._read(sequence, self._left)

    def _eligible(self, sequences: Iterable[Sequence]) -> Iterable[Sequence]:
        return sequences if self._only is None else (one for one in sequences if one in self._only)

    def _contenders(self) -> list[Sequence]:
        """The prompts that may get tokens, by rank."""
        running = [sequence for sequence in self._eligible(self._queues.running) if sequence.remaining > 1]
        for sequence in running:
            self._announce(sequence)
        seats = self._max_running - len(self._queues.running)
        waiting = self._eligible(self._queues.waiting) if seats and not self._full else ()
        waiting = islice(waiting, self._max_running)
        return list(merge(running, waiting, key=rank_of))

    def _read(self, sequence: Sequence, most: int, whole: bool = False) -> bool:
        """Grant up to `most` tokens of a prompt, or with `whole` all that remain or none."""
        found, there = [], 0
        waits = sequence in self._queues.waiting
        if most == 0 or (waits and self._full):
            return False
        if waits:
            names = self._queues.reusable_names(sequence)
            found = self._pool.find(names)
            there = len(found) * self._pool.block_size
            if there >= sequence.kept and len(found) < len(names) and names[len(found)] in self._underway:
                return False  # the next page will be there to be found soon
        unread = self._unread(sequence) - max(there, sequence.kept)
        count = min(unread, most)
        if count <= 0 or (whole and count < unread):
            return False
        if waits and not self._admit(sequence, found):
            return False
        return self._grant(sequence, count)

    def _unread(self, sequence: Sequence) -> int:
        return sequence.remaining - self._granted.get(sequence, 0)

    def _admit(self, sequence: Sequence, found: list[int]) -> bool:
        """Start a waiting sequence if it finds a seat and pages.

        All its tokens and a page's worth more must fit beside the same for those that run: then prompts are read
        without taking pages from each other, and what is admitted is not preempted at once.
        """
        idle = sum(self._pool.references(page) == 0 for page in found)
        promised = sum(self._growth(running) - len(running.table) for running in self._queues.running)
        fits = promised + self._growth(sequence) - len(found) <= self._pool.available - idle
        self._full = not fits or len(self._queues.running) >= self._max_running
        if not self._full:
            self.moves += self._queues.start(sequence)
            self._announce(sequence)
        return not self._full

    def _growth(self, sequence: Sequence) -> int:
        """The pages that a sequence will need soon."""
        return self._pool.pages_for(min(len(sequence.tokens) + self._pool.block_size, sequence.limit))

    def _announce(self, sequence: Sequence) -> None:
        if sequence.publishes and not sequence.alone:
            full = self._queues.full_names(sequence)
            self._underway.update(full[sequence.published :])

    def _grant(self, sequence: Sequence, count: int) -> bool:
        """Pages for `count` more tokens of a running sequence; False if even preemption finds none."""
        granted = self._granted.get(sequence, 0) + count
        while not self._reserve(sequence, sequence.computed + granted):
            victim = self._victim(sequence)
            if victim is None:
                return False
            self._preempt(victim)
        self._granted[sequence] = granted
        self._left = max(0, self._left - count)
        return True

    def _reserve(self, sequence: Sequence, end: int) -> bool:
        extension = self._pool.extend(sequence.table, sequence.computed, end)
        if extension is None:
            return False
        if extension.copy:
            self.moves.append(Move(*extension.copy))
            sequence.table[sequence.computed // self._pool.block_size] = extension.copy[1]
        sequence.table.extend(extension.pages)
        return True

    def _victim(self, sequence: Sequence) -> Sequence | None:
        """The last in rank of those behind `sequence` that have no grant."""
        behind = (other for other in reversed(self._queues.running) if other.rank > sequence.rank)
        return next((other for other in behind if other not in self._granted), None)

    def _preempt(self, sequence: Sequence) -> None:
        self.moves += self._queues.preempt(sequence, store=True)
        self.preempted.append(sequence)
        self._full = True

    def _chunk(self, sequence: Sequence, count: int) -> Chunk:
        draws = (sequence, *sequence.siblings) if count == sequence.remaining else ()
        return Chunk(sequence, sequence.computed, count, draws)
