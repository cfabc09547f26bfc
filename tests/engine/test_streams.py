"""Streams that lag: joined updates, their limit in bytes, and what one update costs the loop."""

import asyncio
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.engine import worker
from modelwright.engine.async_engine import AsyncEngine
from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.engine.refusals import SlowReader
from modelwright.engine.results import Update
from modelwright.engine.streams import Stream
from tests.engine.engines import check_idle, engine_of, greedy
from tests.engine.small_tokenizers import byte_tokenizer
from tests.llamas import HUGGING_FACE, tiny_llama

TOKENIZER = byte_tokenizer()
MODEL = tiny_llama(base=HUGGING_FACE | {"vocab_size": len(TOKENIZER), "max_position_embeddings": 4096})
PARAMS = SamplingParams(
    max_tokens=40,
    ignore_eos=True,
    n=3,
    seed=5,
    temperature=2.0,
    logprobs=2,
    prompt_logprobs=1,
    skip_special_tokens=False,
)


def engine(**limits: Any) -> Engine:
    return engine_of(MODEL, TOKENIZER, **{"num_pages": 1024} | limits)


def alone() -> list[Update]:
    """Every update of the request by itself."""
    one, found = engine(), []
    one.add_request("hello", PARAMS)
    while one.has_work:
        found += one.step()
    return found


ENGINE, ALONE = engine(), alone()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


def check_same(found: list[Update], wanted: list[Update]) -> None:
    """The same text, tokens, numbers and ends, however updates were joined."""
    for index in {update.index for update in wanted}:
        mine, theirs = ([update for update in updates if update.index == index] for updates in (found, wanted))
        assert "".join(update.text for update in mine) == "".join(update.text for update in theirs)
        for name in ("tokens", "logprobs"):
            of_mine, of_theirs = ([one for up in updates for one in getattr(up, name)] for updates in (mine, theirs))
            assert of_mine == of_theirs
        assert [up.completion for up in mine if up.completion] == [up.completion for up in theirs if up.completion]
        assert mine[-1].completion is not None
        for update in mine:
            assert update.times is not None and len(update.times.tokens) == len(update.tokens)
        moments = [moment for update in mine if update.times is not None for moment in update.times.tokens]
        assert moments == sorted(moments)
    for name in ("prompt_logprobs", "cached_tokens"):
        assert [getattr(up, name) for up in found if getattr(up, name) is not None] == [getattr(wanted[0], name)]


@settings(max_examples=25)
@given(st.lists(st.integers(1, 60), max_size=8))
def test_however_a_reader_lags_it_reads_the_same(lags):
    found: list[Update] = []

    async def main() -> None:
        stream = Stream("x", ENGINE.prepare("hello", PARAMS), asyncio.get_running_loop(), lambda stream: None)
        given, pauses = iter(ALONE), iter(lags)
        while True:
            for _ in range(next(pauses, 1000)):
                update = next(given, None)
                if update is not None:
                    assert stream.put(update) == stream._size
            try:
                while stream._unread:
                    found.append(await anext(stream))
                assert stream._size == 0
                if stream._left == 0:
                    await anext(stream)
            except StopAsyncIteration:
                return

    asyncio.run(main())
    check_same(found, ALONE)


def test_a_reader_that_comes_late_finds_one_update_for_each_output():
    async def main() -> list[Update]:
        async with AsyncEngine(engine()) as serving:
            stream = serving.submit(serving.prepare("hello", PARAMS))
            await until(lambda: not serving.has_work)
            return [update async for update in stream]

    found = asyncio.run(main())
    assert [update.index for update in found] == [0, 1, 2]
    check_same(found, ALONE)


def test_a_stream_that_nobody_reads_ends_at_its_limit_and_the_others_go_on():
    served = engine()
    wanted = served.generate(["other"], greedy(60))[0].completions[0].tokens

    async def main() -> None:
        async with AsyncEngine(served, max_unread=2000) as serving:
            unread = [serving.submit(serving.prepare("hello", greedy(2000))) for _ in range(3)]
            found = [token async for up in serving.stream("other", greedy(60)) for token in up.tokens]
            assert tuple(found) == wanted
            await until(lambda: not serving.has_work)
            for stream in unread:
                with pytest.raises(SlowReader, match="waits to be read must be at most 2000 bytes, and 20"):
                    await anext(stream)
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)
                assert not stream._unread

    asyncio.run(main())
    check_idle(served)


def test_a_prompts_own_logprobs_do_not_count_against_the_reader():
    async def main() -> list[Update]:
        async with AsyncEngine(engine(), max_unread=4000) as serving:
            params = greedy(30, prompt_logprobs=20)
            stream = serving.submit(serving.prepare("hello" * 60, params))
            await until(lambda: not serving.has_work)
            return [update async for update in stream]

    (update,) = asyncio.run(main())
    assert update.prompt_logprobs is not None and len(update.prompt_logprobs) == 299 and len(update.tokens) == 30


def test_what_waits_takes_the_memory_that_is_counted():
    prepared = engine().prepare("hello", greedy(400, logprobs=3))
    one = engine()
    one.add_request("hello", greedy(400, logprobs=3))
    updates: list[Update] = []
    while one.has_work:
        updates += one.step()
    loop = asyncio.new_event_loop()
    stream = Stream("x", prepared, loop, lambda stream: None)
    tracemalloc.start()
    for update in updates:
        size = stream.put(update)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    loop.close()
    assert taken < size  # log-probabilities are the updates' own, and are counted besides


def test_a_stream_tells_its_reader_once_in_a_step(monkeypatch):
    calls = []

    async def main() -> None:
        async with AsyncEngine(engine(max_batch=16, token_budget=64)) as serving:
            loop = asyncio.get_running_loop()
            tell = loop.call_soon_threadsafe
            monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *given: calls.append(1) or tell(*given))
            streams = [serving.submit(serving.prepare("hello", greedy(50))) for _ in range(16)]
            tokens = [token for stream in streams async for update in stream for token in update.tokens]
            assert len(tokens) == 800

    asyncio.run(main())
    assert len(calls) < 120  # some 51 steps and 16 orders


def test_a_reader_that_pauses_is_woken_for_the_beginning_and_for_ends():
    woken = 0

    async def main() -> list[Update]:
        async with AsyncEngine(engine()) as serving:
            stream = serving.submit(serving.prepare("hello", PARAMS), pause=1e9)
            wake = stream.wake

            def counted() -> None:
                nonlocal woken
                woken += 1
                wake()

            stream.wake = counted  # type: ignore[method-assign]
            return [update async for update in stream]

    found = asyncio.run(main())
    check_same(found, ALONE)
    assert found[0].times is not None and 1 <= woken <= 1 + 3 < len(ALONE) / 10
    assert len(found) <= 2 * 3 + 1


@pytest.mark.slow
def test_a_reader_that_pauses_is_woken_before_too_much_waits():
    async def main() -> list[int]:
        async with AsyncEngine(engine(), max_unread=16_000) as serving:
            stream = serving.submit(serving.prepare("hello", greedy(1500)), pause=1e9)
            return [token async for update in stream for token in update.tokens]

    assert len(asyncio.run(main())) == 1500


def test_the_loop_has_its_turn_before_the_next_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "GIVE_WAY", 60.0)
    told, called, seen = 0, 0, []
    tell, wake, step = worker.Worker._tell, worker.Worker._wake, worker.Worker._step

    def telling(self: Any, *given: Any) -> None:
        nonlocal told
        told += 1
        tell(self, *given)

    def waking(self: Any) -> None:
        nonlocal called
        called += bool(self._touched or self._changed)
        wake(self)

    def stepping(self: Any) -> list[Update]:
        seen.append(called - told)
        return step(self)

    for name, watched in (("_tell", telling), ("_wake", waking), ("_step", stepping)):
        monkeypatch.setattr(worker.Worker, name, watched)

    async def main() -> list[Update]:
        async with AsyncEngine(engine()) as serving:
            return [update async for update in serving.stream("hello", PARAMS)]

    check_same(asyncio.run(main()), ALONE)
    assert len(seen) >= 40 and set(seen) == {0}


def test_a_loop_that_is_held_up_is_waited_for_once():
    async def main() -> tuple[list[Update], int]:
        waits: list[float] = []
        async with AsyncEngine(engine()) as serving:
            waited = serving._worker._told.wait
            serving._worker._told.wait = lambda seconds: waits.append(seconds) or waited(seconds)  # type: ignore[method-assign]
            stream = serving.submit(serving.prepare("hello", PARAMS))
            while serving.has_work:
                time.sleep(0.001)  # on the loop's thread, which hears of nothing meanwhile
            held_up = len(waits)
            return [update async for update in stream], held_up

    found, held_up = asyncio.run(main())
    check_same(found, ALONE)
    assert held_up == 1
