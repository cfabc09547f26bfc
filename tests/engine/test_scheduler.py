"""The life of sequences: they come, share, run, fork, lose pages, and end, and leave nothing behind."""

import pytest

from modelwright.engine.blocks import BlockPool
from modelwright.engine.scheduler import Scheduler
from modelwright.engine.scheduler_settings import SchedulerSettings
from modelwright.engine.sequence import Sequence, Status
from modelwright.engine.step import StepStatistics
from modelwright.errors import ConfigError, RequestError
from tests.engine.paged_machine import PagedMachine, advance, alone, check_books, complete


def served(num_blocks: int = 16, block_size: int = 4, reuse: bool = True, **limits) -> tuple[Scheduler, PagedMachine]:
    pool = BlockPool(num_blocks, block_size, reuse)
    return Scheduler(pool, SchedulerSettings(**{"max_batch": 4, "token_budget": 8, **limits})), PagedMachine(pool)


def count(*values: int) -> tuple[int, ...]:
    """A prompt of all different tokens."""
    return tuple(range(*values))


def drain(scheduler: Scheduler, machine: PagedMachine, most: int = 500) -> int:
    """Run until all have ended; returns how many tokens were computed."""
    computed = 0
    while scheduler.has_work:
        computed += advance(scheduler, machine).tokens
        check_books(scheduler)
        most -= 1
        assert most, "somebody never ends"
    return computed


def test_a_request_from_prompt_to_last_token():
    scheduler, _ = served()
    sequence = Sequence("a", count(1, 11), max_tokens=2)
    scheduler.add(sequence)

    first = scheduler.schedule()
    assert [(chunk.start, chunk.count, chunk.samples) for chunk in first.chunks] == [(0, 8, False)]
    assert scheduler.commit(first, {}) == ()
    second = scheduler.schedule()
    assert [(chunk.start, chunk.count, chunk.draws) for chunk in second.chunks] == [(8, 2, (sequence,))]
    assert scheduler.commit(second, {"a": 50}) == ()
    assert (sequence.status, sequence.generated, sequence.remaining) == (Status.RUNNING, [50], 1)
    third = scheduler.schedule()
    assert [(chunk.start, chunk.count) for chunk in third.chunks] == [(10, 1)]
    assert scheduler.commit(third, {"a": 51}) == (sequence,)

    assert (sequence.status, sequence.finish_reason, sequence.generated) == (Status.FINISHED, "length", [50, 51])
    assert not scheduler.has_work and scheduler.pool.usage.used == 0
    assert scheduler.schedule().chunks == ()


def test_statistics_of_a_step():
    scheduler, _ = served(max_batch=1)
    scheduler.add(Sequence("a", count(1, 7), 3), [Sequence("b", count(1, 7), 3)])
    scheduler.add(Sequence("c", count(1, 7), 3))
    step = scheduler.schedule()
    assert step.statistics == StepStatistics(
        running=1, waiting=2, preempted=0, pages_used=2, pages_cached=0, pages_free=14, hit_rate=0.0, tokens=6
    )
    assert step.tokens == 6


def test_a_reason_goes_before_the_length():
    scheduler, _ = served()
    sequence = Sequence("a", count(1, 4), max_tokens=1)
    scheduler.add(sequence)
    step = scheduler.schedule()
    assert scheduler.commit(step, {"a": 7}, {"a": "stop"}) == (sequence,)
    assert (sequence.finish_reason, sequence.generated) == ("stop", [7])


def test_finish_ends_a_sequence_between_steps():
    scheduler, machine = served()
    sequence = Sequence("a", count(1, 4), max_tokens=9)
    scheduler.add(sequence)
    advance(scheduler, machine)
    scheduler.finish("a", "stop")
    assert (sequence.status, sequence.finish_reason, scheduler.pool.usage.used) == (Status.FINISHED, "stop", 0)
    with pytest.raises(AssertionError, match="'a' is not being served"):
        scheduler.finish("a", "stop")


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ((), 1, "a prompt needs at least 1 token, got 0"),
        ((1,), -1, "max_tokens must be at least 0, got -1"),
        (count(20), 13, r"prompt \(20 tokens\) \+ max_tokens \(13\) = 33 must be at most the context \(32 tokens\)"),
        (
            count(20),
            5,
            r"prompt \(20 tokens\) \+ max_tokens \(5\) = 25 must be at most the pool \(6 pages of 4 = 24 tokens\)",
        ),
    ],
)
def test_what_can_never_be_served_is_refused(prompt, max_tokens, message):
    scheduler, _ = served(num_blocks=6, max_context=32)
    with pytest.raises(RequestError, match=message):
        scheduler.add(Sequence("x", prompt, max_tokens))
    assert not scheduler.has_work


def test_what_just_fits_the_pool_is_served_though_nothing_else_then_fits():
    scheduler, machine = served(num_blocks=6)
    sequence = Sequence("x", count(1, 20), max_tokens=5)
    scheduler.add(sequence)
    drain(scheduler, machine)
    assert sequence.generated == alone(sequence)


def test_an_id_is_served_once_at_a_time():
    scheduler, machine = served()
    scheduler.add(Sequence("a", (1, 2), 1))
    with pytest.raises(RequestError, match="needs an id of its own, 'a' is being served"):
        scheduler.add(Sequence("a", (1, 2), 1))
    with pytest.raises(RequestError, match="needs an id of its own, 'b' is being served"):
        scheduler.add(Sequence("b", (1, 2), 1), [Sequence("b", (1, 2), 1)])
    drain(scheduler, machine)
    scheduler.add(Sequence("a", (1, 2), 1))


def test_one_step_is_in_flight_at_a_time():
    scheduler, machine = served()
    scheduler.add(Sequence("a", (1, 2), 4))
    step = advance(scheduler, machine)
    with pytest.raises(AssertionError, match="only the step in flight can be committed"):
        scheduler.commit(step, {"a": 1})
    scheduler.schedule()
    with pytest.raises(AssertionError, match="neither committed nor discarded"):
        scheduler.schedule()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"token_budget": 0}, "token_budget must be at least 1, got 0"),
        ({"max_context": 0}, "max_context must be at least 1, got 0"),
        ({"aging": 0}, "aging must be at least 1, got 0"),
        ({"token_budget": 3}, r"token_budget \(3\) must be at least max_batch \(4\)"),
    ],
)
def test_settings_name_the_rule(limits, message):
    with pytest.raises(ConfigError, match=message):
        SchedulerSettings(**{"max_batch": 4, "token_budget": 8, **limits})


# Aborting


def test_abort_while_waiting():
    scheduler, _ = served()
    sequence = Sequence("a", (1, 2), 4)
    scheduler.add(sequence)
    assert scheduler.abort("a") and not scheduler.has_work
    assert (sequence.status, sequence.finish_reason) == (Status.ABORTED, "abort")
    assert scheduler.schedule().chunks == ()


def test_abort_of_a_stranger_or_twice_is_no_error():
    scheduler, _ = served()
    scheduler.add(Sequence("a", (1, 2), 4))
    assert [scheduler.abort(id) for id in ("b", "a", "a")] == [False, True, False]


@pytest.mark.parametrize("steps", [1, 2, 4], ids=["in its prompt", "at its first token", "decoding"])
def test_abort_while_running(steps):
    scheduler, machine = served()
    scheduler.add(Sequence("a", count(1, 15), 9))
    for _ in range(steps):
        advance(scheduler, machine)
    assert scheduler.abort("a")
    assert scheduler.pool.usage.used == 0 and scheduler.running == () and not scheduler.has_work


@pytest.mark.parametrize("steps", [0, 1, 3], ids=["in its prompt", "at its first token", "decoding"])
def test_abort_between_plan_and_commit_keeps_the_pages_until_the_pass_is_done(steps):
    scheduler, machine = served()
    sequence = Sequence("a", count(1, 15), 9)
    scheduler.add(sequence)
    for _ in range(steps):
        advance(scheduler, machine)
    step, drawn = scheduler.schedule(), len(sequence.generated)
    used = scheduler.pool.usage.used
    assert scheduler.abort("a")
    assert scheduler.pool.usage.used == used > 0
    assert complete(scheduler, step, machine.run(step)) == ()
    assert scheduler.pool.usage.used == 0 and len(sequence.generated) == drawn


def test_an_aborted_sequence_needs_no_token():
    scheduler, _ = served()
    scheduler.add(Sequence("a", (1, 2), 4))
    step = scheduler.schedule()
    scheduler.abort("a")
    assert scheduler.commit(step, {}) == ()


def test_an_id_may_come_back_while_its_aborted_bearer_is_in_flight():
    scheduler, _ = served()
    again = Sequence("a", (3, 4, 5), 4)
    scheduler.add(Sequence("a", (1, 2), 4))
    step = scheduler.schedule()
    scheduler.abort("a")
    scheduler.add(again)
    scheduler.commit(step, {"a": 9})
    assert again.generated == []
    drain(scheduler, PagedMachine(scheduler.pool))
    assert again.generated == alone(again)


def test_abort_after_preemption():
    scheduler, machine = served(num_blocks=4, max_batch=2)
    first, second = Sequence("a", count(1, 5), 9), Sequence("b", count(11, 15), 9)
    scheduler.add(first)
    scheduler.add(second)
    while second.status is not Status.PREEMPTED:
        advance(scheduler, machine)
    assert second.table == [] and second.computed == 0 and second in scheduler.waiting
    assert scheduler.abort("b") and scheduler.waiting == ()
    drain(scheduler, machine)
    assert first.generated == alone(first) and scheduler.pool.usage.used == 0


# Samples of one prompt


def samples(prompt: tuple[int, ...], number: int, max_tokens: int = 6) -> list[Sequence]:
    return [Sequence(f"s{index}", prompt, max_tokens) for index in range(number)]


def test_samples_read_their_prompt_once_and_copy_its_last_page_when_they_write():
    scheduler, machine = served()
    leader, *siblings = group = samples(count(1, 7), 3)
    scheduler.add(leader, siblings)
    first = advance(scheduler, machine)
    assert [(chunk.sequence, chunk.count, chunk.draws) for chunk in first.chunks] == [(leader, 6, tuple(group))]
    assert all(sibling.table == leader.table and len(sibling.generated) == 1 for sibling in siblings)
    shared, partly = leader.table
    assert (scheduler.pool.usage.used, scheduler.pool.references(partly)) == (2, 3)

    second = advance(scheduler, machine)
    assert second.tokens == 3 and [move.source for move in second.moves] == [partly, partly]
    assert sorted(sample.table[1] for sample in group) == sorted({partly, *(move.target for move in second.moves)})
    assert scheduler.pool.references(shared) == 3
    drain(scheduler, machine)
    assert [sample.generated for sample in group] == [alone(sample) for sample in group]


def test_samples_of_a_prompt_of_full_pages_copy_nothing():
    scheduler, machine = served()
    leader, *siblings = samples(count(1, 9), 3)
    scheduler.add(leader, siblings)
    assert advance(scheduler, machine).moves == advance(scheduler, machine).moves == ()


def test_more_samples_than_seats_take_their_turns():
    scheduler, machine = served(max_batch=2)
    leader, *siblings = group = samples(count(1, 7), 5)
    scheduler.add(leader, siblings)
    advance(scheduler, machine)
    assert scheduler.running == tuple(group[:2]) and scheduler.waiting == tuple(group[2:])
    assert all(len(sample.generated) == 1 for sample in group)
    drain(scheduler, machine)
    assert [sample.generated for sample in group] == [alone(sample) for sample in group]


@pytest.mark.parametrize("gone", [{0}, {1}, {0, 1}, {1, 2}, {0, 1, 2}])
@pytest.mark.parametrize("steps", [0, 1, 2], ids=["waiting", "in the prompt", "forked"])
@pytest.mark.parametrize("in_flight", [False, True])
def test_the_other_samples_go_on_without_those_aborted(gone, steps, in_flight):
    scheduler, machine = served()
    leader, *siblings = group = samples(count(1, 15), 3)
    scheduler.add(leader, siblings)
    computed = sum(advance(scheduler, machine).tokens for _ in range(steps))
    step = scheduler.schedule() if in_flight else None
    for index in gone:
        assert scheduler.abort(f"s{index}")
    if step:
        computed += step.tokens
        complete(scheduler, step, machine.run(step))
    check_books(scheduler)
    computed += drain(scheduler, machine)
    left = [sample for index, sample in enumerate(group) if index not in gone]
    assert [sample.generated for sample in left] == [alone(sample) for sample in left]
    assert scheduler.pool.usage.used == 0
    decoded = sum(max(0, len(sample.generated) - 1) for sample in group)
    thrown_away = len(gone) if in_flight and steps == 2 else 0
    if left:
        assert computed == 14 + decoded + thrown_away, "the prompt is read once"


# Finding what was computed before


def test_a_second_request_computes_only_what_differs():
    scheduler, machine = served()
    for id, tail in (("a", 20), ("b", 21)):
        sequence = Sequence(id, (*count(1, 9), tail), 1)
        scheduler.add(sequence)
        step = scheduler.schedule()
        while not step.chunks[0].samples:
            complete(scheduler, step, machine.run(step))
            step = scheduler.schedule()
        assert step.chunks[0].start == 8
        complete(scheduler, step, machine.run(step))
    assert scheduler.pool.usage.hit_rate == 2 / 4


def test_a_hit_never_covers_the_whole_prompt():
    scheduler, machine = served()
    scheduler.add(Sequence("a", count(1, 9), 1))
    drain(scheduler, machine)
    scheduler.add(Sequence("b", count(1, 9), 1))
    [chunk] = scheduler.schedule().chunks
    assert (chunk.start, chunk.count, chunk.samples) == (4, 4, True)


def test_prompt_logprobs_compute_the_whole_prompt():
    scheduler, machine = served()
    scheduler.add(Sequence("a", count(1, 9), 1))
    drain(scheduler, machine)
    scheduler.add(Sequence("b", count(1, 9), 1, prompt_logprobs=True))
    [chunk] = scheduler.schedule().chunks
    assert (chunk.start, chunk.count) == (0, 8)


def test_generated_pages_are_found_by_the_next_turn_of_a_conversation():
    scheduler, machine = served()
    first = Sequence("a", count(1, 6), 8)
    scheduler.add(first)
    drain(scheduler, machine)
    assert len(first.tokens) == 13 and first.finish_reason == "length"
    scheduler.add(Sequence("b", (*first.tokens, 30), 1))
    [chunk] = scheduler.schedule().chunks
    assert (chunk.start, chunk.count) == (12, 2)


@pytest.mark.parametrize(("salt", "pixels", "start"), [("", b"cat", 8), ("", b"dog", 0), ("adapter", b"cat", 0)])
def test_pages_are_found_by_pixels_and_salt(salt, pixels, start):
    scheduler, machine = served()

    def asking(id: str, salt: str, pixels: bytes) -> Sequence:
        keys = tuple((pixels, row) for row in range(9))
        return Sequence(id, (99,) * 9, 1, keys=keys, salt=salt)

    scheduler.add(asking("a", "", b"cat"))
    drain(scheduler, machine)
    scheduler.add(asking("b", salt, pixels))
    assert scheduler.schedule().chunks[0].start == start


def test_requests_of_one_prefix_wait_for_the_one_that_reads_it():
    scheduler, machine = served(num_blocks=2200, block_size=16, max_batch=16, token_budget=8192)
    prefix = count(1, 2049)
    group = [Sequence(f"r{index}", (*prefix, 3000 + index), 4) for index in range(16)]
    for sequence in group:
        scheduler.add(sequence)
    computed = drain(scheduler, machine)
    assert [sequence.generated for sequence in group] == [alone(sequence) for sequence in group]
    decoded = sum(len(sequence.generated) - 1 for sequence in group)
    assert computed - decoded == 2048 + 16, "of 16 * 2049 tokens"


def test_a_reset_forgets_what_was_read_and_what_is_being_read():
    scheduler, machine = served()
    running = Sequence("a", count(1, 14), 9)
    scheduler.add(running)
    advance(scheduler, machine)
    scheduler.forget_prefixes()
    advance(scheduler, machine)
    assert running.generated
    scheduler.add(Sequence("b", count(1, 14), 1))
    advance(scheduler, machine)
    assert scheduler.pool.usage.pages_found == 0
    drain(scheduler, machine)
    scheduler.add(Sequence("c", count(1, 14), 1))
    assert scheduler.schedule().chunks[0].start == 12


def test_a_failed_pass_is_computed_again():
    scheduler, machine = served()
    leader, *siblings = group = samples(count(1, 7), 3)
    scheduler.add(leader, siblings)
    for steps in (0, 1, 2):
        for _ in range(steps):
            advance(scheduler, machine)
        step = scheduler.schedule()
        scheduler.abort("s1")
        machine.spoil(step)
        scheduler.discard(step)
        check_books(scheduler)
    with pytest.raises(AssertionError, match="only the step in flight can be discarded"):
        scheduler.discard(step)
    drain(scheduler, machine)
    assert [group[index].generated for index in (0, 2)] == [alone(group[index]) for index in (0, 2)]
