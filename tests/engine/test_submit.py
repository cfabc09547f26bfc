"""Requests that are taken or refused at once, counted, given up at any place, drained, and watched from outside."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from modelwright.engine.async_engine import AsyncEngine
from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.engine.refusals import Closed, Died, Draining, QueueFull, TimedOut
from modelwright.engine.results import Update
from modelwright.engine.streams import Stream
from modelwright.errors import RequestError
from modelwright.parallel import RankLost
from tests.engine.engines import check_idle, engine_of, expected, greedy
from tests.fakes import tiny_vl2, tokens, vl2_inputs
from tests.llamas import HUGGING_FACE, tiny_llama

MODEL = tiny_llama(base=HUGGING_FACE | {"max_position_embeddings": 4096})
PROMPTS = [tuple(tokens(length, seed=length).tolist()) for length in (3, 7, 12)]
LONG = greedy(3000)


class Gate:
    """Lets an engine's passes through while it is open; `inside` says that one waits before it."""

    def __init__(self, engine: Engine):
        self._open, self.inside = threading.Event(), threading.Event()
        forward = engine._runner._forward

        def waiting(one: Any) -> Any:
            self.inside.set()
            assert self._open.wait(600)
            return forward(one)

        engine._runner._forward = waiting  # type: ignore[method-assign]

    def open(self) -> None:
        self._open.set()

    def close(self) -> None:
        self.inside.clear()
        self._open.clear()


def run(work: Callable[[AsyncEngine], Any], engine: Engine | None = None, **limits: Any) -> Any:
    """Let `work` use an engine, and see that nothing of its requests is left in the end."""
    engine = engine or engine_of(MODEL, num_pages=4096)

    async def main() -> Any:
        async with AsyncEngine(engine, **limits) as serving:
            found = await asyncio.wait_for(work(serving), 600)
            await until(lambda: not serving.has_work)
            assert (serving.waiting, serving.running, serving.queued_tokens) == (0, 0, 0)
            return found

    found = asyncio.run(main())
    check_idle(engine)
    return found


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


async def read(stream: Stream) -> list[Update]:
    return [update async for update in stream]


def test_what_is_submitted_is_served():
    async def work(serving: AsyncEngine) -> None:
        streams = [serving.submit(serving.prepare(prompt, greedy(6))) for prompt in PROMPTS]
        assert [stream.prompt_tokens for stream in streams] == [3, 7, 12]
        for prompt, updates in zip(PROMPTS, await asyncio.gather(*map(read, streams)), strict=True):
            found = tuple(token for update in updates for token in update.tokens)
            assert found == expected(MODEL, prompt, 6).tokens

    run(work)


def test_counts_are_those_of_now_without_a_step():
    engine = engine_of(MODEL, max_batch=2, num_pages=4096)
    gate = Gate(engine)

    async def work(serving: AsyncEngine) -> None:
        def counts() -> tuple[int, int, int]:
            return serving.waiting, serving.running, serving.queued_tokens

        assert counts() == (0, 0, 0) and not serving.has_work
        first = serving.submit(serving.prepare(PROMPTS[0], LONG))
        assert serving.has_work and serving.waiting + serving.running == 1
        await until(gate.inside.is_set)
        assert counts() == (0, 1, 0)
        others = [serving.submit(serving.prepare(prompt, LONG)) for prompt in PROMPTS]
        assert counts() == (3, 1, 22)
        others[2].abort()
        gate.open()
        await until(lambda: counts() == (1, 2, 7))
        for stream in (first, *others):
            stream.abort()

    run(work, engine)


def test_the_queue_of_requests_ends_somewhere_and_refuses_at_once():
    engine = engine_of(MODEL, max_batch=2, num_pages=4096)
    gate = Gate(engine)

    async def work(serving: AsyncEngine) -> None:
        prepared = [serving.prepare(PROMPTS[0], greedy(3)) for _ in range(205)]
        taken, refused = [], []
        for one in prepared:
            try:
                taken.append(serving.submit(one))
            except QueueFull as error:
                assert error.what == "requests" and "must be at most 5, and with this one they would be 6" in str(error)
                refused.append(one)
        assert (len(taken), len(refused)) == (5, 200)
        gate.open()
        await asyncio.gather(*map(read, taken))
        later = await read(serving.submit(refused[0]))
        assert sum(len(update.tokens) for update in later) == 3

    run(work, engine, max_requests=5)


def test_the_queue_of_tokens_ends_somewhere_and_takes_a_long_prompt_alone():
    engine = engine_of(MODEL, num_pages=4096)
    gate = Gate(engine)

    async def work(serving: AsyncEngine) -> None:
        streams = [serving.submit(serving.prepare(PROMPTS[0], greedy(3)))]
        await until(gate.inside.is_set)
        streams += [serving.submit(serving.prepare(PROMPTS[2], greedy(3)))]  # 12 tokens, above the limit, and alone
        with pytest.raises(QueueFull, match=r"tokens of prompts that wait must be at most 10, and .* be 15") as refused:
            serving.submit(serving.prepare(PROMPTS[0], greedy(3)))
        assert refused.value.what == "tokens"
        gate.open()
        await asyncio.gather(*map(read, streams))

    run(work, engine, max_queued_tokens=10)


def test_by_default_four_caches_may_wait():
    engine = engine_of(MODEL, num_pages=8)
    gate = Gate(engine)

    async def work(serving: AsyncEngine) -> None:
        streams = [serving.submit(serving.prepare(PROMPTS[0], greedy(3)))]
        await until(gate.inside.is_set)
        with pytest.raises(QueueFull, match="must be at most 128"):
            for _ in range(99):
                streams.append(serving.submit(serving.prepare(PROMPTS[2], greedy(3))))
        assert serving.queued_tokens == 120
        gate.open()
        await asyncio.gather(*map(read, streams))

    run(work, engine)


def test_streams_wait_for_room_in_their_order():
    order: list[int] = []

    async def work(serving: AsyncEngine) -> None:
        async def ask(number: int) -> None:
            async for _ in serving.stream(PROMPTS[number % 3], greedy(4)):
                if number not in order:
                    order.append(number)

        tasks = []
        for number in range(9):
            tasks.append(asyncio.create_task(ask(number)))
            await until(lambda: serving.waiting + serving.running >= min(len(tasks), 1) or bool(order))
            await asyncio.sleep(0.02)
        tasks[4].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(work, engine_of(MODEL, max_batch=1), max_requests=1)
    assert order == sorted(order) and {*range(9)} - {4} <= {*order}


PLACES = ("order", "queue", "prefill", "picture", "decode", "preempted", "ended")


@pytest.mark.one_in(4)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("place", PLACES)
def test_an_abort_takes_effect_before_the_next_step_wherever_the_request_stands(place, n):
    model = tiny_vl2() if place == "picture" else MODEL
    limits = {"num_pages": 24, "max_batch": 4} if place == "preempted" else {"num_pages": 4096, "max_batch": 1 + n}
    engine = engine_of(model, token_budget=4, **limits)
    gate, steps = Gate(engine), []

    async def work(serving: AsyncEngine) -> None:
        other = serving.submit(serving.prepare(PROMPTS[1], greedy(40)))
        await until(gate.inside.is_set)
        prompt = vl2_inputs([[(1, 1)]]) if place == "picture" else tuple(tokens(40, seed=9).tolist())
        prepared = serving.prepare(prompt, greedy(4 if place == "ended" else 20, n=n))
        if place == "queue":
            blocker = serving.submit(serving.prepare(PROMPTS[2], greedy(60, n=n)))
        stream = serving.submit(prepared)
        if place != "order":
            gate.open()
        reader = asyncio.create_task(read(stream))
        if place == "queue":
            await until(lambda: blocker.started)
            assert not stream.started
        elif place in ("prefill", "picture"):
            await until(lambda: stream.started)
        elif place != "order":
            await until(lambda: bool(reader.done() or prepared.samples[0].tokens))
        if place == "preempted":
            await until(lambda: bool(reader.done() or (serving.statistics and serving.statistics.step.preempted)))
        if place == "ended":
            await reader
        elif place != "order":
            gate.close()
            await until(lambda: gate.inside.is_set() or not serving.has_work)
        before = sum(len(own.tokens) for own in prepared.samples)
        forward = engine._runner._forward
        engine._runner._forward = lambda one: steps.append(one.tokens) or forward(one)
        stream.abort()
        gate.open()
        updates = await reader
        after = sum(len(own.tokens) for own in prepared.samples)
        assert after - before <= n  # what the step under way drew
        reasons = [update.completion.finish_reason for update in updates if update.completion is not None]
        assert len(reasons) == n and (place in ("ended", "preempted") or reasons == ["abort"] * n)
        assert stream.id not in engine._roster
        if place == "queue":
            blocker.abort()
        found = tuple(token for update in await read(other) for token in update.tokens)
        if place != "picture":
            assert found == expected(MODEL, PROMPTS[1], 40).tokens

    run(work, engine)


def test_a_task_that_is_cancelled_while_it_reads_a_submitted_stream_can_abort_it():
    async def work(serving: AsyncEngine) -> None:
        stream = serving.submit(serving.prepare(PROMPTS[0], LONG))
        reader = asyncio.create_task(read(stream))
        await asyncio.sleep(0.02)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        stream.abort()
        await until(lambda: not serving.has_work)

    run(work)


def test_time_runs_out_while_it_waits_and_while_it_runs():
    engine = engine_of(MODEL, max_batch=1, num_pages=4096)

    async def work(serving: AsyncEngine) -> None:
        long = serving.submit(serving.prepare(PROMPTS[0], LONG), timeout=0.3)
        await until(lambda: long.started)
        queued = serving.submit(serving.prepare(PROMPTS[1], LONG), queue_timeout=0.05)
        late = serving.submit(serving.prepare(PROMPTS[1], greedy(3)), timeout=0.1)
        with pytest.raises(TimedOut, match=r"was to be started in 0\.05 seconds, and was not") as queue:
            await read(queued)
        with pytest.raises(TimedOut, match=r"was to be started in 0\.1 seconds") as life:
            await read(late)
        assert queue.value.waited and life.value.waited and long.started
        found = []
        with pytest.raises(TimedOut, match=r"was to be finished in 0\.3 seconds, and was not") as running:
            async for update in long:
                found += update.tokens
        assert found and not running.value.waited  # what there was is read first
        begun = time.monotonic()
        with pytest.raises(TimedOut, match=r"in 30 seconds, and was not"):
            await read(serving.submit(serving.prepare(PROMPTS[0], LONG), timeout=30, spent=29.95))
        assert time.monotonic() - begun < 15
        fine = serving.submit(serving.prepare(PROMPTS[1], greedy(3)), timeout=60, queue_timeout=60)
        assert len(await read(fine)) >= 1 and not fine._timers

    run(work, engine)


def test_time_runs_out_even_while_a_step_takes_longer():
    engine = engine_of(MODEL)
    gate = Gate(engine)

    async def work(serving: AsyncEngine) -> None:
        with pytest.raises(TimedOut):
            await read(serving.submit(serving.prepare(PROMPTS[0], greedy(3)), timeout=0.05))
        gate.open()

    run(work, engine)


def test_draining_lets_what_there_is_end_and_takes_nothing_new():
    async def work(serving: AsyncEngine) -> None:
        streams = [serving.submit(serving.prepare(prompt, greedy(20))) for prompt in PROMPTS]
        drained = asyncio.create_task(serving.drain(30))
        await asyncio.sleep(0)
        with pytest.raises(Draining, match="takes nothing new"):
            serving.submit(serving.prepare(PROMPTS[0], greedy(2)))
        await drained
        assert not serving.has_work and serving.alive
        for updates in await asyncio.gather(*map(read, streams)):
            assert updates[-1].completion is not None and len(updates[-1].completion.tokens) == 20

    run(work)


def test_what_is_not_done_when_draining_ends_gives_what_it_has():
    engine = engine_of(MODEL, max_batch=2, num_pages=4096)

    async def work(serving: AsyncEngine) -> None:
        streams = [serving.submit(serving.prepare(prompt, LONG)) for prompt in PROMPTS]
        readers = [asyncio.create_task(read(stream)) for stream in streams]
        await until(lambda: all(stream.started for stream in streams[:2]))
        await serving.drain(0.05)
        for reader, started in zip(readers, (True, True, False), strict=True):
            updates = await reader
            done = updates[-1].completion
            assert done is not None and done.finish_reason == "abort" and bool(done.tokens) == started
            assert tuple(token for update in updates for token in update.tokens) == done.tokens

    run(work, engine)


def test_draining_tells_those_who_wait_for_room():
    async def work(serving: AsyncEngine) -> None:
        running = asyncio.create_task(read(serving.submit(serving.prepare(PROMPTS[0], greedy(200)))))
        waiting = asyncio.create_task(anext(serving.stream(PROMPTS[1], greedy(3))))
        await asyncio.sleep(0.02)
        await serving.drain(30)
        with pytest.raises(Draining):
            await waiting
        assert len((await running)[-1].completion.tokens) == 200  # pyright: ignore[reportOptionalMemberAccess]

    run(work, max_requests=1)


def test_an_idle_engine_drains_at_once_and_twice():
    async def work(serving: AsyncEngine) -> None:
        await serving.drain(0)
        await serving.drain()

    run(work)


def test_the_heart_beats_with_each_step_and_not_while_one_hangs():
    engine = engine_of(MODEL)
    gate = Gate(engine)

    async def work(serving: AsyncEngine) -> None:
        await asyncio.sleep(0.1)
        born, submitted = serving.last_step, time.monotonic()
        stream = serving.submit(serving.prepare(PROMPTS[0], greedy(5)))
        assert serving.last_step >= submitted > born  # idle time is nobody's delay
        await until(gate.inside.is_set)
        beat = serving.last_step
        await asyncio.sleep(0.1)
        assert serving.last_step == beat and serving.has_work and serving.alive
        gate.open()
        await read(stream)
        assert serving.last_step > beat and serving.longest_step >= 0.09
        longest = serving.longest_step
        await read(serving.submit(serving.prepare(PROMPTS[0], greedy(5))))
        assert serving.longest_step == longest

    run(work, engine)


@pytest.mark.parametrize("error", [SystemExit("out"), KeyboardInterrupt(), RankLost("gone")])
def test_a_thread_that_dies_tells_those_that_ran_and_those_that_come(error, monkeypatch):
    engine = engine_of(MODEL, num_pages=4096)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    async def work(serving: AsyncEngine) -> None:
        streams = [serving.submit(serving.prepare(prompt, LONG)) for prompt in PROMPTS]
        await until(lambda: all(stream.started for stream in streams))
        assert serving.alive
        monkeypatch.setattr(engine, "step", lambda: (_ for _ in ()).throw(error))
        for stream in streams:
            with pytest.raises(Died, match=f"the engine has ended: {type(error).__name__}") as told:
                await read(stream)
            assert told.value.__cause__ is error
        await until(lambda: not serving.alive)
        with pytest.raises(Died):
            serving.submit(serving.prepare(PROMPTS[0], LONG))
        with pytest.raises(Died):
            serving.forget_prefixes()
        await serving.drain(10)

    run(work, engine)


def test_a_closed_engine_says_so():
    async def work(serving: AsyncEngine) -> None:
        stream = serving.submit(serving.prepare(PROMPTS[0], LONG))
        await asyncio.to_thread(serving.close)
        for asked in (read(stream), anext(serving.stream(PROMPTS[0], LONG))):
            with pytest.raises(Closed, match=r"^the engine is closed$"):
                await asked
        with pytest.raises(Closed):
            serving.submit(serving.prepare(PROMPTS[0], LONG))
        assert not serving.alive

    run(work, engine_of(MODEL, num_pages=4096))


def test_what_is_submitted_wrongly():
    async def work(serving: AsyncEngine) -> None:
        prepared = serving.prepare(PROMPTS[0], greedy(2))
        with pytest.raises(RequestError, match="priority must be an int, got 'high'"):
            serving.submit(prepared, priority="high")  # pyright: ignore[reportArgumentType]
        first, second = serving.submit(prepared), serving.submit(prepared)
        assert len(await read(first)) >= 1
        with pytest.raises(RequestError, match="can be added once, and this one was"):
            await read(second)
        with pytest.raises(RequestError, match="can be submitted once, and this one was"):
            serving.submit(prepared)

    run(work)
    for limits in ({"max_requests": 0}, {"max_queued_tokens": 0}, {"max_unread": 0}):
        with pytest.raises(RequestError, match=f"{next(iter(limits))} must be at least 1, got 0"):
            AsyncEngine(engine_of(MODEL), **limits)


def test_no_answer_is_read_through_streams_too():
    async def work(serving: AsyncEngine) -> None:
        params = SamplingParams(max_tokens=0, prompt_logprobs=0)
        (update,) = await read(serving.submit(serving.prepare(PROMPTS[1], params)))
        assert update.completion is not None and update.completion.finish_reason == "length"
        assert update.prompt_logprobs is not None and len(update.prompt_logprobs) == 6

    run(work)
