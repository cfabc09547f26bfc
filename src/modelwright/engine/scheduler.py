"""`Scheduler`, the life of sequences: they are added, planned into steps, advanced, forked and ended; no tensors.

Continuous batching: each step computes one token of every sequence that decodes and, within the same budget, pieces of
prompts (`StepPlan` says which). Sequences are served by rank: the step they were added in plus `aging` steps for each
level of priority, so a level is worth that many steps of waiting. A sequence is overtaken only by those added within
that time, hence none starves under any stream of requests whose priorities are bounded. A running sequence loses its
pages only when others that rank before it need them to go on; a better priority alone takes no pages from anyone. What
it had computed waits in host memory if there is room, and is computed again otherwise.
"""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from modelwright.engine.blocks import BlockPool
from modelwright.engine.host_pages import HostPages
from modelwright.engine.queues import Queues
from modelwright.engine.refusals import LargerThanCache
from modelwright.engine.scheduler_settings import SchedulerSettings
from modelwright.engine.sequence import Sequence, Status
from modelwright.engine.step import Chunk, Direction, Step, StepStatistics
from modelwright.engine.step_plan import StepPlan
from modelwright.errors import RequestError

_OUT, _BACK = Direction.OUT, Direction.BACK
NO_REASONS: Mapping[str, str] = MappingProxyType({})
NOBODY: frozenset[str] = frozenset()


class Scheduler:
    """Plans one step at a time: `schedule`, run the pass, `commit` what was drawn (or `discard` a pass that failed).

    Requests may come (`add`) and go (`abort`, `finish`) at any moment. What the step in flight works on keeps its pages
    until the step is committed.
    """

    def __init__(self, pool: BlockPool, settings: SchedulerSettings, host_pages: int = 0):
        self.pool, self.settings = pool, settings
        self.host = HostPages(host_pages, pool.block_size)
        self._queues = Queues(pool, self.host)
        self._live: dict[str, Sequence] = {}
        self._step: Step | None = None  # in flight
        self._steps = self._arrivals = 0
        self._prompts_next = True  # without chunk_prefill: whose turn it is

    @property
    def has_work(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self._live)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Those that hold pages, by rank."""
        return tuple(self._queues.running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """Those in the queue, by rank; samples that wait for their prompt to be read are behind their leader."""
        return tuple(self._queues.waiting)

    @property
    def admits(self) -> bool:
        """Whether the next step may look for the pages of a sequence that waits."""
        return bool(self._queues.waiting) and len(self._queues.running) < self.settings.max_batch

    def add(self, sequence: Sequence, siblings: Iterable[Sequence] = ()) -> None:
        """Let a sequence wait for its turn, with `siblings`: more samples of the same prompt, which is read once.

        Raises:
            RequestError: an id is being served already, the prompt is empty, no token may be drawn, or prompt and new
                tokens together exceed the context or the pool.
        """
        samples = [sequence, *siblings]
        self._check(samples)
        for sample in samples:
            assert sample.prompt == sequence.prompt and sample.keys == sequence.keys and sample.salt == sequence.salt
            sample.arrival = self._arrivals
            sample.rank = (self._steps + sample.priority * self.settings.aging, sample.arrival)
            self._arrivals += 1
            self._live[sample.id] = sample
        for sample in samples[1:]:
            sample.leader = sequence
            sequence.siblings.append(sample)
        self._queues.waiting.add(sequence)

    def abort(self, id: str) -> bool:
        """End a sequence wherever it stands; False if there is none of that id, or no more."""
        if id not in self._live:
            return False
        self._end(self._live[id], Status.ABORTED, "abort")
        return True

    def finish(self, id: str, reason: str) -> None:
        """End a living sequence whose text turned out to be complete."""
        assert id in self._live, f"{id!r} is not being served"
        self._end(self._live[id], Status.FINISHED, reason)

    def schedule(self, only: Collection[Sequence] | None = None) -> Step:
        """The next step, empty only when there is no work; its pages are taken.

        With `only` it is a step of some sequences, and empty too where others leave them no room.
        """
        assert self._step is None, "the last step was neither committed nor discarded"
        settings = self.settings
        running = self._queues.running
        decoding = sum(sequence.remaining == 1 for sequence in running)
        budget = settings.budget(decoding, len(running) - decoding + len(self._queues.waiting))
        plan = StepPlan(self._queues, budget, settings.max_batch, settings.chunk_prefill, only)
        prompts_first = self._prompts_next and not settings.chunk_prefill
        for grant in (plan.prompts, plan.decodes) if prompts_first else (plan.decodes, plan.prompts):
            if settings.chunk_prefill or not plan.chunks:
                grant()
                self._prompts_next = grant == plan.decodes
        chunks = plan.chunks
        assert chunks or not self._live or only is not None, "a step must do something while anybody waits"
        self._steps += 1
        preempted = tuple(plan.preempted)
        self._step = Step(chunks, tuple(plan.moves), preempted, self._statistics(chunks, len(preempted)))
        return self._step

    def commit(
        self,
        step: Step,
        sampled: Mapping[str, int],
        reasons: Mapping[str, str] = NO_REASONS,
        damaged: Collection[str] = NOBODY,
    ) -> tuple[Sequence, ...]:
        """Take in a pass that is done; returns the sequences that ended with it.

        Args:
            step: what `schedule` returned.
            sampled: the token of each sequence that drew one, by id; those aborted meanwhile may be left out. Of a
                sequence without `max_tokens`, of which only the prompt is read, none is taken.
            reasons: why sequences end with that token, by id. Who reaches its `max_tokens` ends anyway, as "length".
            damaged: ids of those whose pages hold what is no number. Nobody finds these pages again. A sequence that
                has no reason to end draws nothing: it is computed again, without pages that others filled.
        """
        assert step is self._step, "only the step in flight can be committed"
        self._step = None
        drawn = [sequence for chunk in step.chunks for sequence in chunk.draws if not sequence.ended]
        for chunk in step.chunks:
            if chunk.sequence.id not in damaged:
                self._advance(chunk)
                continue
            self.pool.unpublish(chunk.sequence.table)
            if chunk.sequence.id not in reasons and not chunk.sequence.ended:
                drawn = [sequence for sequence in drawn if sequence not in chunk.draws]
                chunk.sequence.alone, chunk.sequence.borrowed, chunk.sequence.found = True, False, 0
                self._queues.preempt(chunk.sequence, store=False)
        for sequence in drawn:
            if sequence.max_tokens:
                sequence.tokens.append(sampled[sequence.id])
            reason = reasons.get(sequence.id) or ("length" if len(sequence.tokens) >= sequence.limit else None)
            if reason:
                self._end(sequence, Status.FINISHED, reason)
        self._let_go_of_ended()
        return tuple(sequence for sequence in drawn if sequence.ended)

    def discard(self, step: Step) -> None:
        """The pass failed: what its pages hold is unknown, so its sequences lose them and are computed again.

        So are those whose pages were to be moved, for nobody knows how far that got.
        """
        assert step is self._step, "only the step in flight can be discarded"
        self._step = None
        self._let_go_of_ended()
        out, back = ({move.target for move in step.moves if move.direction is way} for way in (_OUT, _BACK))
        for sequence in self._queues.waiting:
            if not out.isdisjoint(sequence.stored):
                self.host.drop(sequence)
        computed = {chunk.sequence for chunk in step.chunks}
        for sequence in list(self._queues.running):
            if sequence in computed or not back.isdisjoint(sequence.table):
                self._queues.preempt(sequence, store=False)

    def forget_prefixes(self) -> None:
        """Reset the prefix cache, for instance for new weights; what runs now will not be found by others either.

        What waits in host memory is dropped, and will be computed by the new weights as all that waits.
        """
        self.pool.forget()
        for sequence in self._queues.running:
            sequence.publishes = False
        for sequence in self._queues.waiting:
            self.host.drop(sequence)

    def restart(self) -> None:
        """All pages are gone, those on the host too: who runs waits again, and is computed anew."""
        assert self._step is None, "a step is in flight, and its pages are in use"
        for sequence in list(self._queues.running):
            self._queues.preempt(sequence, store=False)
        self.forget_prefixes()

    def check_size(self, sequence: Sequence) -> None:
        """Raise what `add` does for a sequence that could never be served; in any thread.

        Raises:
            RequestError: the prompt is empty, or less than no token may be drawn.
            LargerThanCache: all pages do not hold it; or for its context, a RequestError.
        """
        pool, context = self.pool, self.settings.max_context
        if not sequence.prompt:
            raise RequestError("a prompt needs at least 1 token, got 0")
        if sequence.max_tokens < 0:
            raise RequestError(f"max_tokens must be at least 0, got {sequence.max_tokens}")
        total = f"prompt ({len(sequence.prompt)} tokens) + max_tokens ({sequence.max_tokens}) = {sequence.limit}"
        if context is not None and sequence.limit > context:
            raise RequestError(f"{total} must be at most the context ({context} tokens)")
        if pool.pages_for(sequence.limit) > pool.num_blocks:
            size = f"{pool.num_blocks} pages of {pool.block_size} = {pool.num_blocks * pool.block_size}"
            raise LargerThanCache(f"{total} must be at most the pool ({size} tokens)")

    def _check(self, samples: list[Sequence]) -> None:
        ids = [sample.id for sample in samples]
        for sample in samples:
            if sample.id in self._live or ids.count(sample.id) > 1:
                raise RequestError(f"a request needs an id of its own, {sample.id!r} is being served")
            self.check_size(sample)

    def _advance(self, chunk: Chunk) -> None:
        """The chunk's tokens are in pages: publish those it filled, and once the prompt is read let siblings run."""
        sequence, size = chunk.sequence, self.pool.block_size
        sequence.computed = chunk.end
        if sequence.publishes and not sequence.alone and self.pool.reuse:
            names = sequence.page_names(size, chunk.end // size)
            for index in range(sequence.published, chunk.end // size):
                self.pool.publish(sequence.table[index], names[index])
            sequence.published = chunk.end // size
        if chunk.draws:
            for sibling in sequence.siblings:
                sibling.leader = None
                self._queues.fork(sequence, sibling, self.settings.max_batch)
            sequence.siblings.clear()

    def _end(self, sequence: Sequence, status: Status, reason: str) -> None:
        del self._live[sequence.id]
        sequence.status, sequence.finish_reason = status, reason
        if sequence.leader is not None:
            sequence.leader.siblings.remove(sequence)
            sequence.leader = None
        else:
            self._let_go(sequence)

    def _let_go_of_ended(self) -> None:
        for sequence in [running for running in self._queues.running if running.ended]:
            self._let_go(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        """Give back what an ended sequence holds, to a sibling that waits for it if there is one."""
        if self._step is not None and sequence in self._queues.running:
            return  # the step in flight writes to its pages
        if not sequence.siblings:
            self._queues.remove(sequence)
            return
        heir, *others = sequence.siblings
        heir.leader, heir.siblings = None, others
        for sibling in others:
            sibling.leader = heir
        sequence.siblings = []
        self._queues.replace(sequence, heir)

    def _statistics(self, chunks: tuple[Chunk, ...], preempted: int) -> StepStatistics:
        usage, running = self.pool.usage, len(self._queues.running)
        return StepStatistics(
            running=running,
            waiting=len(self._live) - running,
            preempted=preempted,
            pages_used=usage.used,
            pages_cached=usage.cached,
            pages_free=usage.free,
            hit_rate=usage.hit_rate,
            tokens=sum(chunk.count for chunk in chunks),
            pages_stored=self.host.used,
        )
