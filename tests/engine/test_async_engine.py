"""The engine on its thread: streams, cancellation, back-pressure, failures, closing, and no thread left behind."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelwright.engine.async_engine import AsyncEngine
from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.engine.refusals import Died
from modelwright.engine.results import Update
from modelwright.errors import RequestError, RequestFailed
from tests.engine.engines import check_idle, engine_of, expected, greedy, tokens_of
from tests.fakes import tokens
from tests.llamas import HUGGING_FACE, tiny_llama

MODEL = tiny_llama(base=HUGGING_FACE)
PROMPTS = [tuple(tokens(length, seed=length).tolist()) for length in (3, 7, 12)]
LONG = greedy(40)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "modelwright-engine"]


def run(work: Callable[[AsyncEngine], Awaitable[Any]], engine: Engine | None = None, max_requests: int = 256) -> Any:
    """Let `work` use an engine that is closed afterwards, and see that nothing is left in it."""
    engine = engine or engine_of(MODEL)

    async def main() -> Any:
        async with AsyncEngine(engine, max_requests) as serving:
            return await asyncio.wait_for(work(serving), 600)

    result = asyncio.run(main())
    check_idle(engine)
    return result


async def collect(updates: AsyncIterator[Update]) -> tuple[int, ...]:
    return tuple([token async for update in updates for token in update.tokens])


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


def test_streams_side_by_side_give_what_the_engine_gives():
    async def work(serving: AsyncEngine) -> list[tuple[int, ...]]:
        return await asyncio.gather(*(collect(serving.stream(prompt, greedy(6))) for prompt in PROMPTS))

    assert run(work) == tokens_of(engine_of(MODEL).generate(PROMPTS, greedy(6)))


def test_a_stream_of_several_outputs_ends_with_the_last_of_them():
    async def work(serving: AsyncEngine) -> list[Update]:
        params = SamplingParams(max_tokens=9, temperature=2.0, seed=3, n=3)
        return [update async for update in serving.stream(PROMPTS[0], params)]

    ended = [update.completion.index for update in run(work) if update.completion is not None]
    assert sorted(ended) == [0, 1, 2]


def test_updates_come_before_the_end():
    async def work(serving: AsyncEngine) -> None:
        stream = serving.stream(PROMPTS[0], LONG)
        async with aclosing(stream):
            first = await anext(stream)
            assert first.completion is None and len(first.tokens) == 1
            assert serving.statistics is not None

    run(work)


def test_a_refused_request_tells_only_its_own_task():
    async def work(serving: AsyncEngine) -> list[Any]:
        streams = (
            serving.stream(PROMPTS[0], greedy(4)),
            serving.stream([999], greedy(4)),
            serving.stream([], greedy(4)),
        )
        return await asyncio.gather(*map(collect, streams), return_exceptions=True)

    served, unknown, empty = run(work)
    assert served == expected(MODEL, PROMPTS[0], 4).tokens
    assert isinstance(unknown, RequestError) and "below the vocabulary's 64, got 999" in str(unknown)
    assert isinstance(empty, RequestError) and "a prompt needs at least 1 token" in str(empty)


def test_leaving_the_loop_early_aborts():
    engine = engine_of(MODEL)

    async def work(serving: AsyncEngine) -> None:
        async with aclosing(serving.stream(PROMPTS[0], LONG)) as stream:
            async for _ in stream:
                break
        await until(lambda: not engine.has_work)
        assert engine._scheduler.pool.usage.used == 0

    run(work, engine)


def test_an_abort_before_the_request_reached_the_engine():
    async def work(serving: AsyncEngine) -> None:
        prepared = serving.prepare(PROMPTS[0], LONG)
        with serving._worker._awake:  # the thread cannot read its orders meanwhile
            stream = serving.submit(prepared)
            stream.abort()
            stream.abort()
        (update,) = [update async for update in stream]
        assert update.completion is not None and update.completion.finish_reason == "abort"
        await until(lambda: not serving.has_work)
        assert not serving._worker._streams and not serving._worker._orders

    run(work)


@pytest.mark.parametrize("ticks", range(4))
def test_a_task_that_is_cancelled_before_it_asked_leaves_nothing(ticks):
    async def work(serving: AsyncEngine) -> None:
        task = asyncio.create_task(collect(serving.stream(PROMPTS[0], LONG)))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not serving.has_work and not serving._worker._orders)
        assert not serving._worker._streams and (serving.waiting, serving.running, serving.queued_tokens) == (0, 0, 0)

    run(work)


@pytest.mark.slow
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.none() | st.integers(0, 12), min_size=1, max_size=6))
def test_cancellation_at_any_moment_leaves_the_others_alone(cancelled):
    wanted = expected(MODEL, PROMPTS[1], 8).tokens

    async def work(serving: AsyncEngine) -> list[Any]:
        tasks = [asyncio.create_task(collect(serving.stream(PROMPTS[1], greedy(8)))) for _ in cancelled]
        for tick in range(13):
            await asyncio.sleep(0.001)
            for task, moment in zip(tasks, cancelled, strict=True):
                if moment == tick:
                    task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    for found, moment in zip(run(work), cancelled, strict=True):
        assert found == wanted or (moment is not None and isinstance(found, asyncio.CancelledError))


def test_no_more_requests_than_there_is_room_for():
    engine, most = engine_of(MODEL), []

    async def work(serving: AsyncEngine) -> list[tuple[int, ...]]:
        async def watched(prompt: tuple[int, ...]) -> tuple[int, ...]:
            found = []
            async for update in serving.stream(prompt, greedy(5)):
                most.append(len(engine._roster))
                found += update.tokens
            return tuple(found)

        return await asyncio.gather(*(watched(PROMPTS[0]) for _ in range(7)))

    assert len(set(run(work, engine, max_requests=2))) == 1
    assert 1 <= max(most) <= 2


def test_a_failing_model_is_heard_of_by_everyone_and_the_next_is_served(monkeypatch):
    engine = engine_of(MODEL)

    async def work(serving: AsyncEngine) -> None:
        waiting = [asyncio.create_task(collect(serving.stream(prompt, LONG))) for prompt in PROMPTS]
        await until(lambda: len(engine._roster) == 3)
        # Of the class: the engine's thread walks through the attributes of the module, which must stay as many.
        monkeypatch.setattr(type(MODEL.model.norm), "forward", lambda norm, x: 1 / 0)
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        monkeypatch.undo()
        for error in errors:
            assert isinstance(error, RequestFailed) and str(error).endswith("ZeroDivisionError: division by zero")
            assert isinstance(error.__cause__, ZeroDivisionError)
        assert len({id(error) for error in errors}) == 3
        assert await collect(serving.stream(PROMPTS[2], greedy(4))) == expected(MODEL, PROMPTS[2], 4).tokens

    run(work, engine)


def test_forgetting_comes_before_what_is_asked_later():
    engine, found = engine_of(MODEL), []

    async def work(serving: AsyncEngine) -> None:
        for forgets in (False, False, True):
            if forgets:
                serving.forget_prefixes()
            await collect(serving.stream(PROMPTS[2], greedy(2)))
            found.append(engine._scheduler.pool.usage.pages_found)
        await asyncio.to_thread(serving.close)
        with pytest.raises(RequestError, match="the engine is closed"):
            serving.forget_prefixes()

    run(work, engine)
    assert found == [0, 2, 2]


def test_closing_ends_streams_and_refuses_new_ones():
    async def work(serving: AsyncEngine) -> None:
        waiting = [asyncio.create_task(collect(serving.stream(PROMPTS[0], LONG))) for _ in range(3)]
        await until(lambda: serving.waiting + serving.running == 2)
        await asyncio.to_thread(serving.close)
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, RequestError) and str(error) == "the engine is closed"
        with pytest.raises(RequestError, match="the engine is closed"):
            await collect(serving.stream(PROMPTS[0], LONG))
        serving.close()  # again, which changes nothing

    run(work, max_requests=2)


def test_a_thread_that_ends_for_whatever_reason_leaves_nobody_waiting(monkeypatch):
    engine = engine_of(MODEL)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    async def work(serving: AsyncEngine) -> None:
        monkeypatch.setattr(engine, "step", lambda: (_ for _ in ()).throw(SystemExit))
        for _ in range(2):
            with pytest.raises(Died, match="the engine has ended: SystemExit"):
                await collect(serving.stream(PROMPTS[0], LONG))
        assert not serving.alive and not serving.has_work

    run(work, engine)


def test_it_serves_one_event_loop():
    serving = AsyncEngine(engine_of(MODEL))
    assert len(asyncio.run(collect(serving.stream(PROMPTS[0], greedy(3))))) == 3
    with pytest.raises(RequestError, match="an AsyncEngine serves one event loop, and was used in another one before"):
        asyncio.run(collect(serving.stream(PROMPTS[0], greedy(3))))
    serving.close()


def test_a_loop_that_ends_in_the_middle_does_not_end_the_thread():
    engine = engine_of(MODEL)
    serving = AsyncEngine(engine)

    async def leave() -> None:
        await anext(serving.stream(PROMPTS[0], LONG))

    asyncio.run(leave())
    serving.close()
    check_idle(engine)


def test_what_cannot_be_built():
    with pytest.raises(RequestError, match="max_requests must be at least 1, got 0"):
        AsyncEngine(engine_of(MODEL), 0)
    engine = engine_of(MODEL)
    engine.add_request(PROMPTS[0])
    with pytest.raises(RequestError, match="needs an engine of its own, and this one is serving requests"):
        AsyncEngine(engine)
