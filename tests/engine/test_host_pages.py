"""What sequences computed waits in host memory: no page is lost, nothing is computed twice, answers stay the same."""

from typing import Any

import pytest

from modelwright.engine.blocks import BlockPool
from modelwright.engine.host_pages import HostPages
from modelwright.engine.scheduler import Scheduler
from modelwright.engine.scheduler_settings import SchedulerSettings
from modelwright.engine.sequence import Sequence
from modelwright.engine.step import Direction, Move, Step
from tests.engine.engines import check_idle, engine_of, expected, greedy
from tests.engine.paged_machine import PagedMachine, advance, alone, check_books
from tests.fakes import MHA, tiny_v2, tokens
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama


def computed(count: int) -> Sequence:
    """A sequence whose first tokens are in pages 10, 11, ..."""
    sequence = Sequence("a", tuple(range(20)), 5)
    sequence.table, sequence.computed = [10 + i for i in range(-(-count // 4))], count
    return sequence


def test_all_that_was_computed_is_stored_or_nothing():
    host, first, second = HostPages(3, 4), computed(6), computed(6)
    moves = host.store(first)
    assert [(move.source, move.direction) for move in moves] == [(10, Direction.OUT), (11, Direction.OUT)]
    assert first.stored == [move.target for move in moves] and (first.kept, host.used) == (6, 2)
    assert host.store(second) == [] and (second.stored, second.kept, host.used) == ([], 0, 2)
    host.drop(first)
    assert (first.stored, first.kept, host.used) == ([], 0, 0)
    assert len(host.store(second)) == 2
    assert host.store(computed(0)) == []


def test_only_what_lacks_is_brought_back_and_the_rest_is_given_up():
    host, sequence = HostPages(5, 4), computed(10)
    stored = [move.target for move in host.store(sequence)]
    assert host.restore(sequence, [7, 8]) == [Move(stored[1], 7, Direction.BACK), Move(stored[2], 8, Direction.BACK)]
    assert (sequence.stored, host.used) == ([], 0)


def test_without_pages_nothing_is_stored():
    host, sequence = HostPages(0, 4), computed(6)
    assert host.store(sequence) == []
    host.drop(sequence)
    assert host.used == 0


# With the scheduler


def two(host_pages: int = 8, reuse: bool = True) -> tuple[Scheduler, PagedMachine, Sequence, Sequence]:
    """Two sequences of 4 and up to 12 tokens, for whose ends 6 pages of 4 are too few."""
    scheduler = Scheduler(BlockPool(6, 4, reuse), SchedulerSettings(2, 16), host_pages)
    one, other = Sequence("a", (1, 2, 3, 4), 12), Sequence("b", (9, 8, 7, 6), 12)
    scheduler.add(one)
    scheduler.add(other)
    return scheduler, PagedMachine(scheduler.pool, host_pages), one, other


def until_preemption(scheduler: Scheduler, machine: PagedMachine) -> Step:
    """Up to the step that takes somebody's pages, which is planned and not run."""
    while not (step := scheduler.schedule()).preempted:
        scheduler.commit(step, machine.run(step))
    return step


def run_on(scheduler: Scheduler, machine: PagedMachine, step: Step) -> None:
    """Finish the step and all others."""
    scheduler.commit(step, machine.run(step))
    while scheduler.has_work:
        advance(scheduler, machine)
        check_books(scheduler)


@pytest.mark.parametrize("reuse", [False, True])
def test_a_sequence_that_lost_its_pages_computes_no_token_twice(reuse):
    scheduler, machine, one, other = two(reuse=reuse)
    step = until_preemption(scheduler, machine)
    assert [move.direction for move in step.moves] == [Direction.OUT] * 3
    assert (other.kept, step.statistics.pages_stored) == (12, 3)
    scheduler.commit(step, machine.run(step))
    while not other.table:
        step = advance(scheduler, machine)
    assert [(chunk.start, chunk.count) for chunk in step.chunks if chunk.sequence is other] == [(12, 1)]
    back = [move.target for move in step.moves if move.direction is Direction.BACK]
    assert back == other.table[3 - len(back) : 3] and len(back) == (1 if reuse else 3)  # two were found on the device
    while scheduler.has_work:
        advance(scheduler, machine)
    assert (one.generated, other.generated) == (alone(one), alone(other))
    assert (scheduler.pool.usage.used, scheduler.host.used) == (0, 0)


def test_what_was_brought_back_is_found_by_others():
    scheduler, machine, _, other = two()
    step = until_preemption(scheduler, machine)
    scheduler.pool.forget()  # so that its pages come from the host alone, as if others had needed theirs
    run_on(scheduler, machine, step)
    again = Sequence("again", (*other.tokens[:12], 5), 1)
    scheduler.add(again)
    assert [chunk.start for chunk in advance(scheduler, machine).chunks] == [12]


def test_where_the_host_is_full_it_is_computed_again():
    scheduler, machine, one, other = two(host_pages=2)
    step = until_preemption(scheduler, machine)
    assert step.moves == () and other.kept == 0
    run_on(scheduler, machine, step)
    assert (one.generated, other.generated) == (alone(one), alone(other))


@pytest.mark.parametrize("when", ["planned", "waiting"])
def test_an_abort_gives_the_pages_on_the_host_back(when):
    scheduler, machine, *_ = two()
    step = until_preemption(scheduler, machine)
    if when == "waiting":
        scheduler.commit(step, machine.run(step))
    assert scheduler.host.used == 3
    scheduler.abort("b")
    assert scheduler.host.used == 0
    if when == "planned":
        scheduler.commit(step, machine.run(step))
    check_books(scheduler)


def test_a_pass_that_fails_may_not_have_moved_anything():
    scheduler, machine, one, other = two()
    step = until_preemption(scheduler, machine)
    machine.spoil(step)
    scheduler.discard(step)
    assert (other.kept, scheduler.host.used) == (0, 0)
    while scheduler.has_work:
        advance(scheduler, machine)
    assert (one.generated, other.generated) == (alone(one), alone(other))


def test_new_weights_let_what_waits_be_computed_again():
    scheduler, machine, _, other = two()
    step = until_preemption(scheduler, machine)
    scheduler.commit(step, machine.run(step))
    scheduler.forget_prefixes()
    assert (other.kept, scheduler.host.used) == (0, 0)


# With a model

FAMILIES: dict[str, Any] = {
    "latent": lambda: tiny_v2(),
    "grouped": lambda: tiny_v2(base=MHA),
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "imagegpt": tiny_imagegpt,
}
PROMPTS = [[int(token) % 16 for token in tokens(length)] for length in (9, 6, 11)]
NEW = 14


def serve(model: Any, **settings: Any) -> tuple[list[tuple[int, ...]], int, int]:
    """The tokens of each prompt, how many were computed, and how often a sequence lost its pages."""
    engine = engine_of(model, page_size=4, num_pages=10, reuse_prefixes=False, **settings)
    names, found, count, preempted = [engine.add_request(prompt, greedy(NEW)) for prompt in PROMPTS], {}, 0, 0
    while engine.has_work:
        found |= {update.request: update.completion.tokens for update in engine.step() if update.completion}
        assert engine.statistics is not None
        count, preempted = count + engine.statistics.step.tokens, preempted + engine.statistics.step.preempted
    check_idle(engine)
    assert engine._scheduler.host.used == 0
    return [found[name] for name in names], count, preempted


@pytest.mark.parametrize("family", FAMILIES)
def test_each_token_is_computed_once_and_answers_are_those_of_generate(family):
    model = FAMILIES[family]()
    wanted = [expected(model, prompt, NEW).tokens for prompt in PROMPTS]
    once = sum(len(prompt) + NEW - 1 for prompt in PROMPTS)
    found, count, preempted = serve(model, host_pages=16)
    assert (found, count) == (wanted, once) and preempted > 0
    found, count, preempted = serve(model)
    assert found == wanted and count > once and preempted > 0


def test_integers_and_their_scales_come_back_as_they_were():
    model = tiny_v2()
    found, _, preempted = serve(model, host_pages=16, kv_dtype="int8")
    assert preempted > 0 and found == serve(model, kv_dtype="int8", max_batch=1)[0]
