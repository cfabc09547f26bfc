"""Whose tokens go into a step: decodes, then prompts by rank, short ones past long ones, nobody left behind."""

import pytest

from modelwright.engine.blocks import BlockPool
from modelwright.engine.scheduler import Scheduler
from modelwright.engine.scheduler_settings import SchedulerSettings
from modelwright.engine.sequence import Sequence
from modelwright.engine.step import Step
from tests.engine.paged_machine import PagedMachine, advance, alone, check_books, check_step, complete


def served(num_blocks: int = 100, block_size: int = 4, **limits) -> tuple[Scheduler, PagedMachine]:
    pool = BlockPool(num_blocks, block_size)
    return Scheduler(pool, SchedulerSettings(**{"max_batch": 4, "token_budget": 16, **limits})), PagedMachine(pool)


def asking(id: str, length: int, max_tokens: int = 50, priority: int = 0) -> Sequence:
    """A request whose prompt shares nothing with others'."""
    return Sequence(id, (sum(map(ord, id)), *range(1, length)), max_tokens, priority=priority)


def shown(step: Step) -> dict[str, int]:
    return {chunk.sequence.id: chunk.count for chunk in step.chunks}


def until_preemption(scheduler: Scheduler, machine: PagedMachine) -> Step:
    """The first step that takes somebody's pages."""
    while scheduler.has_work:
        if (step := advance(scheduler, machine)).preempted:
            return step
    raise AssertionError("nobody was preempted")


def test_decodes_go_first_and_prompts_share_what_they_leave():
    scheduler, machine = served()
    scheduler.add(asking("a", 3))
    scheduler.add(asking("b", 4))
    assert shown(advance(scheduler, machine)) == {"a": 3, "b": 4}
    scheduler.add(asking("c", 40))
    assert [shown(advance(scheduler, machine)) for _ in range(4)] == [
        {"a": 1, "b": 1, "c": 14},
        {"a": 1, "b": 1, "c": 14},
        {"a": 1, "b": 1, "c": 12},
        {"a": 1, "b": 1, "c": 1},
    ]


def test_short_prompts_pass_long_ones_which_keep_half_the_budget():
    scheduler, machine = served(max_batch=8)
    for id, length in (("long1", 60), ("long2", 60), ("b", 3), ("c", 4), ("d", 5)):
        scheduler.add(asking(id, length))
    assert shown(advance(scheduler, machine)) == {"long1": 9, "b": 3, "c": 4}
    assert shown(advance(scheduler, machine)) == {"b": 1, "c": 1, "long1": 9, "d": 5}
    assert shown(advance(scheduler, machine)) == {"b": 1, "c": 1, "d": 1, "long1": 13}


def test_a_long_prompt_alone_gets_the_whole_budget():
    scheduler, machine = served()
    scheduler.add(asking("long", 40))
    assert [shown(advance(scheduler, machine)) for _ in range(3)] == [{"long": 16}, {"long": 16}, {"long": 8}]


def test_a_long_prompt_goes_on_under_a_stream_of_short_ones():
    scheduler, machine = served(num_blocks=400, max_batch=6)
    long = asking("long", 200, max_tokens=1)
    scheduler.add(long)
    for step in range(30):
        if long.ended:
            break
        for index in range(4):
            scheduler.add(asking(f"{step} {index}", 5, max_tokens=2))
        advance(scheduler, machine)
    assert long.ended and step <= 200 // 8


def test_without_chunks_steps_of_whole_prompts_and_of_decodes_take_turns():
    scheduler, machine = served(chunk_prefill=False)
    for id, length in (("a", 6), ("b", 12), ("c", 7)):
        scheduler.add(asking(id, length))
    assert [shown(advance(scheduler, machine)) for _ in range(5)] == [
        {"a": 6, "c": 7},
        {"a": 1, "c": 1},
        {"b": 12},
        {"a": 1, "b": 1, "c": 1},
        {"a": 1, "b": 1, "c": 1},
    ]


def test_without_chunks_a_prompt_beyond_the_budget_gets_a_step_to_itself():
    scheduler, machine = served(chunk_prefill=False)
    for id, length in (("long", 40), ("a", 6)):
        scheduler.add(asking(id, length))
    assert [shown(advance(scheduler, machine)) for _ in range(3)] == [{"long": 40}, {"long": 1}, {"a": 6}]


def test_without_chunks_decodes_take_their_turn_under_a_stream_of_prompts_of_one_token():
    scheduler, machine = served(chunk_prefill=False)
    first = asking("first", 6, max_tokens=5)
    scheduler.add(first)
    for step in range(9):
        advance(scheduler, machine)
        scheduler.add(asking(str(step), 1, max_tokens=1))
    assert first.ended


def test_no_more_run_than_there_are_seats():
    scheduler, machine = served(max_batch=2)
    for id in "abc":
        scheduler.add(asking(id, 3, max_tokens=2))
    assert shown(advance(scheduler, machine)) == {"a": 3, "b": 3}
    assert shown(advance(scheduler, machine)) == {"a": 1, "b": 1}
    assert shown(advance(scheduler, machine)) == {"c": 3}


# Ranks


def test_a_lower_priority_number_goes_first_then_the_earlier():
    scheduler, _ = served()
    for id, priority in (("a", 1), ("b", 0), ("c", 1), ("d", -1)):
        scheduler.add(asking(id, 3, priority=priority))
    assert [sequence.id for sequence in scheduler.waiting] == ["d", "b", "a", "c"]


def test_a_level_of_priority_is_worth_so_many_steps_of_waiting():
    scheduler, machine = served(max_batch=1, aging=3)
    scheduler.add(asking("running", 3, max_tokens=20))
    advance(scheduler, machine)
    scheduler.add(asking("low", 3, priority=1))  # at step 1, as if at step 4
    for _ in range(2):
        advance(scheduler, machine)
    scheduler.add(asking("before", 3))  # at step 3
    for _ in range(2):
        advance(scheduler, machine)
    scheduler.add(asking("after", 3))  # at step 5
    assert [sequence.id for sequence in scheduler.waiting] == ["before", "low", "after"]


@pytest.mark.parametrize("chunk_prefill", [False, True])
def test_nobody_starves_under_a_stream_of_better_priority(chunk_prefill):
    scheduler, machine = served(max_batch=2, aging=5, chunk_prefill=chunk_prefill)
    low = asking("low", 30, max_tokens=3, priority=4)
    scheduler.add(low)
    step = 0
    while not low.ended:
        for index in range(2):
            scheduler.add(asking(f"{step} {index}", 6, max_tokens=3))
        advance(scheduler, machine)
        step += 1
        assert step < 200
    ahead = 4 * 5 * 2  # added before its age outweighs their priority; two run at a time, for 4 steps at most
    assert 4 * 5 <= step <= ahead * 4


# Pages


def test_the_last_in_rank_loses_its_pages_and_goes_before_the_waiting():
    scheduler, machine = served(num_blocks=6, max_batch=3)
    for id, priority in (("a", 1), ("b", 0), ("c", 0), ("d", 2)):
        scheduler.add(asking(id, 3, max_tokens=12, priority=priority))
    step = advance(scheduler, machine)
    assert shown(step) == {"b": 3, "c": 3, "a": 3}
    step = until_preemption(scheduler, machine)
    assert [sequence.id for sequence in step.preempted] == ["a"] and step.statistics.preempted == 1
    assert shown(step) == {"b": 1, "c": 1}
    assert [sequence.id for sequence in scheduler.waiting] == ["a", "d"]


def test_what_was_preempted_goes_on_where_it_was_and_finds_its_pages_again():
    scheduler, machine = served(num_blocks=6, max_batch=2)
    one, other = asking("a", 4, max_tokens=12), asking("b", 4, max_tokens=12)
    scheduler.add(one)
    scheduler.add(other)
    step = until_preemption(scheduler, machine)
    drawn = list(other.generated)
    assert step.preempted == (other,) and len(drawn) == 9
    while not other.table:
        step = advance(scheduler, machine)
    assert [(chunk.start, chunk.count) for chunk in step.chunks] == [(8, 5)]
    while scheduler.has_work:
        advance(scheduler, machine)
    assert other.generated[: len(drawn)] == drawn
    assert (one.generated, other.generated) == (alone(one), alone(other))


def test_small_requests_take_no_pages_past_a_large_one_that_waits_for_them():
    scheduler, machine = served(num_blocks=10, token_budget=64)
    scheduler.add(asking("running", 20, max_tokens=4))
    advance(scheduler, machine)
    scheduler.add(asking("large", 30, max_tokens=4))
    scheduler.add(asking("small", 4, max_tokens=4))
    assert [shown(advance(scheduler, machine)) for _ in range(4)] == [
        {"running": 1},
        {"running": 1},
        {"running": 1},
        {"large": 30},
    ]


def test_what_is_admitted_has_room_to_go_on_for_a_page():
    scheduler, machine = served(num_blocks=7, max_batch=2)
    scheduler.add(asking("a", 12, max_tokens=8))
    scheduler.add(asking("b", 12, max_tokens=8))
    steps = [advance(scheduler, machine) for _ in range(20)]
    assert not any(step.preempted for step in steps) and not scheduler.has_work


def test_a_prompt_takes_pages_only_from_those_behind_it():
    scheduler, machine = served(num_blocks=9, max_batch=3, token_budget=8)
    early = asking("early", 4, max_tokens=20)
    late = asking("late", 16, max_tokens=4)
    scheduler.add(early)
    advance(scheduler, machine)
    scheduler.add(late)
    for _ in range(80):
        if not scheduler.has_work:
            break
        step = scheduler.schedule()
        check_step(scheduler, step)
        assert early not in step.preempted
        complete(scheduler, step, machine.run(step))
        check_books(scheduler)
    assert (early.generated, late.generated) == (alone(early), alone(late))
