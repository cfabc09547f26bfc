"""Whatever comes in whatever order: all end with the tokens they would draw alone, and no page is lost or mixed up."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelwright.engine.blocks import BlockPool
from modelwright.engine.scheduler import Scheduler
from modelwright.engine.scheduler_settings import SchedulerSettings
from modelwright.engine.sequence import Sequence, Status
from tests.engine.paged_machine import PagedMachine, alone, check_books, check_step, complete

SIZE, PAGES = 3, 9
PIECES = [1, 1, 1, 2, (b"cat", 0), (b"dog", 0)]  # few, so that prompts begin alike


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, end, are aborted and fail at any point of a step."""

    @initialize(
        max_batch=st.integers(1, 4),
        spare=st.integers(0, 8),
        chunk_prefill=st.booleans(),
        reuse=st.booleans(),
        aging=st.sampled_from([1, 4, 1000]),
        host_pages=st.sampled_from([0, 3, 40]),
        fewer=st.sampled_from([None, 1, 3]),
    )
    def start(self, max_batch, spare, chunk_prefill, reuse, aging, host_pages, fewer):
        self.pool = BlockPool(PAGES, SIZE, reuse)
        limits = SchedulerSettings(max_batch, max_batch + spare, chunk_prefill, aging=aging, shared_budget=fewer)
        self.scheduler = Scheduler(self.pool, limits, host_pages)
        self.machine = PagedMachine(self.pool, host_pages)
        self.all: list[Sequence] = []
        self.step = None

    @rule(
        keys=st.lists(st.sampled_from(PIECES), min_size=1, max_size=18),
        max_tokens=st.integers(1, 9),
        samples=st.sampled_from([1, 1, 1, 2, 3]),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "", "adapter"]),
        prompt_logprobs=st.booleans(),
    )
    def add(self, keys, max_tokens, samples, priority, salt, prompt_logprobs):
        prompt = tuple(key if isinstance(key, int) else 99 for key in keys)
        first, *others = (
            Sequence(f"stops{len(self.all) + i}", prompt, max_tokens, tuple(keys), salt, priority, prompt_logprobs)
            for i in range(samples)
        )
        self.scheduler.add(first, others)
        self.all += [first, *others]

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def abort(self, data):
        sequence = data.draw(st.sampled_from(self.all))
        lived = not sequence.ended
        assert self.scheduler.abort(sequence.id) == lived

    @precondition(lambda self: self.step is None)
    @rule()
    def plan(self):
        had_work = self.scheduler.has_work
        self.step = self.scheduler.schedule()
        assert bool(self.step.chunks) == had_work
        check_step(self.scheduler, self.step)

    @precondition(lambda self: self.step is not None)
    @rule()
    def commit(self):
        complete(self.scheduler, self.step, self.machine.run(self.step))
        self.step = None

    @precondition(lambda self: self.step is not None)
    @rule()
    def fail(self):
        self.machine.spoil(self.step)
        self.scheduler.discard(self.step)
        self.step = None

    @rule()
    def forget(self):
        self.scheduler.forget_prefixes()
        assert self.pool.usage.cached == 0

    @rule(steps=st.integers(1, 6))
    def go_on(self, steps):
        for _ in range(steps):
            if self.step is None:
                self.plan()
            self.commit()

    @invariant()
    def the_books_agree(self):
        check_books(self.scheduler)

    def teardown(self):
        budget = 40 * sum(sequence.limit for sequence in self.all) + 2
        while self.scheduler.has_work or self.step:
            self.go_on(1)
            check_books(self.scheduler)
            budget -= 1
            assert budget, "somebody never ends"
        assert self.pool.usage.used == self.scheduler.host.used == 0
        assert not self.scheduler.running and not self.scheduler.waiting
        for sequence in self.all:
            whole = alone(sequence)
            assert sequence.ended and not sequence.table
            assert sequence.generated == (
                whole if sequence.status is Status.FINISHED else whole[: len(sequence.generated)]
            )
        self.scheduler.forget_prefixes()
        assert self.pool.usage.free == PAGES


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@pytest.mark.slow
@pytest.mark.parametrize("host_pages", [0, 30])
def test_ten_thousand_small_requests_with_random_aborts_leave_no_page_in_use(host_pages):
    chance = random.Random(5)
    pool = BlockPool(48, 2)
    scheduler = Scheduler(pool, SchedulerSettings(max_batch=16, token_budget=80), host_pages)
    machine = PagedMachine(pool, host_pages)
    live: dict[str, Sequence] = {}
    aborted = finished = added = preempted = 0
    while added < 10_000 or scheduler.has_work:
        while added < 10_000 and len(live) < 24:
            prompt = tuple(chance.choices(range(4), k=chance.randint(1, 12)))
            sequence = Sequence(f"stops{added}", prompt, chance.randint(1, 8), priority=chance.randint(0, 1))
            scheduler.add(sequence)
            live[sequence.id] = sequence
            added += 1
        step = scheduler.schedule()
        preempted += len(step.preempted)
        if live and chance.random() < 0.5:
            gone = chance.choice(list(live))
            aborted += scheduler.abort(gone)
            del live[gone]
        for sequence in complete(scheduler, step, machine.run(step)):
            assert sequence.generated == alone(sequence)
            finished += 1
            del live[sequence.id]
    assert finished + aborted == 10_000 and aborted > 500 and preempted > 0
    assert (pool.usage.used, pool.available, scheduler.host.used) == (0, 48, 0)
    assert pool.usage.hit_rate > 0.1
