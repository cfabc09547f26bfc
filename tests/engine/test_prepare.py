"""What is prepared in any thread: the same answers, no race of tokenizers, and no wait for those who are served."""

import asyncio
import json
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from modelwright.engine.async_engine import AsyncEngine
from modelwright.engine.guide import GuideCompiler
from modelwright.engine.params import Guide, SamplingParams
from modelwright.errors import RequestError
from tests.engine.engines import check_idle, engine_of, greedy, tokens_of
from tests.engine.small_tokenizers import byte_tokenizer
from tests.fakes import tiny_vl2, vl2_inputs
from tests.llamas import HUGGING_FACE, tiny_llama

TOKENIZER = byte_tokenizer()
MODEL = tiny_llama(base=HUGGING_FACE | {"vocab_size": len(TOKENIZER), "eos_token_id": None})
LONG = tiny_llama(base=HUGGING_FACE | {"vocab_size": len(TOKENIZER), "max_position_embeddings": 60_000})
TEXTS = ["a good day", "what is it?", "näher — ☂ — und 😀", "x" * 40]


def cut_and_padded() -> PreTrainedTokenizerFast:
    """A tokenizer whose file says to cut and to pad, which transformers undoes with its first call."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    return tokenizer


@pytest.mark.one_in(2)
@pytest.mark.parametrize("make", [byte_tokenizer, cut_and_padded])
def test_many_threads_prepare_while_another_serves(make):
    engine = engine_of(MODEL, make())
    guides = [
        None,
        Guide(regex="[a-z ]{1,8}"),
        Guide(json_schema={"enum": ["one", "two"]}),
        Guide(boxes=False, regex="a+"),
    ]
    asked = [
        (text, greedy(6, min_tokens=0, guide=guide, bad_words=["zz"], stop=("qq",)))
        for text in TEXTS
        for guide in guides
    ]
    wanted = [engine_of(MODEL, TOKENIZER).generate([text], params)[0].completions[0] for text, params in asked]
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as threads:
            jobs = [threads.submit(engine.prepare, *each) for _ in range(6) for each in asked]
            busy = {engine.add_request(text, greedy(30)) for text in TEXTS}
            while not all(job.done() for job in jobs):
                assert all(update.completion is None or not update.completion.error for update in engine.step())
                busy = {id_ for id_ in busy if engine.serves(id_)}
                busy |= set() if busy else {engine.add_request(TEXTS[0], greedy(30))}
    finally:
        sys.setswitchinterval(switching)
    names = [engine.add(job.result()) for job in jobs]
    ended = {}
    while engine.has_work:
        ended |= {update.request: update.completion for update in engine.step() if update.completion is not None}
    assert [(ended[name].text, ended[name].tokens) for name in names] == [
        (one.text, one.tokens) for _ in range(6) for one in wanted
    ]
    check_idle(engine)


def test_one_guide_is_compiled_once_however_many_ask(monkeypatch):
    compiler, compiled = GuideCompiler(TOKENIZER, ()), []
    compile_, all_there = compiler._compile, threading.Barrier(8)

    def slowly(kind: str, text: str) -> Any:
        compiled.append(text)
        time.sleep(0.05)
        return compile_(kind, text)

    monkeypatch.setattr(compiler, "_compile", slowly)
    guide = Guide(regex="[a-z]+")

    def ask() -> Any:
        all_there.wait()
        return compiler.start(guide, 3)

    with ThreadPoolExecutor(8) as threads:
        followers = [job.result() for job in [threads.submit(ask) for _ in range(8)]]
    assert compiled == [guide.regex] and len({id(one._matcher) for one in followers}) == 8


def test_a_guide_that_cannot_be_followed_is_refused_each_time():
    compiler = GuideCompiler(TOKENIZER, ())
    for _ in range(2):
        with pytest.raises(RequestError, match="the guide's regex cannot be followed"):
            compiler.start(Guide(regex="("), 3)


@pytest.mark.parametrize("words", [8_000, 100_000])
def test_a_large_guide_does_not_hold_up_streams(words):
    guide = Guide(json_schema=json.dumps({"enum": [f"word{word}" for word in range(words)]}))
    took, gaps, lags = [0.0], [], []

    async def main() -> None:
        async with AsyncEngine(engine_of(LONG, TOKENIZER, num_pages=4096)) as serving:
            done = asyncio.Event()

            async def read() -> None:
                last = time.monotonic()
                async for _ in serving.stream(TEXTS[0], greedy(10_000)):
                    gaps.append(time.monotonic() - last)
                    last = time.monotonic()
                    if done.is_set():
                        return

            async def watch() -> None:
                while not done.is_set():
                    begun = time.monotonic()
                    await asyncio.sleep(0.001)
                    lags.append(time.monotonic() - begun)

            reader, watcher = asyncio.create_task(read()), asyncio.create_task(watch())
            await asyncio.sleep(0.05)
            begun = time.monotonic()
            try:
                await asyncio.to_thread(serving.prepare, TEXTS[1], greedy(4, min_tokens=0, guide=guide))
            except RequestError as error:
                assert "too big" in str(error)  # of a hundred thousand words; whoever compiles them takes as long
            took[0] = time.monotonic() - begun
            done.set()
            await asyncio.gather(reader, watcher)

    asyncio.run(main())
    for each in (gaps, lags):  # as many steps, and turns of the loop, as there was time for
        assert len(each) > took[0] / (20 * statistics.median(each))


def test_each_is_added_once():
    engine = engine_of(MODEL, TOKENIZER)
    prepared = engine.prepare("a", greedy(2))
    assert (prepared.tokens, prepared.prompt_tokens, prepared.largest) == (tuple(TOKENIZER.encode("a")), 1, 3)
    engine.add(prepared)
    with pytest.raises(RequestError, match="can be added once, and this one was"):
        engine.add(prepared)
    with pytest.raises(RequestError, match="params must be SamplingParams, got 3"):
        engine.prepare("a", 3)  # pyright: ignore[reportArgumentType]


def test_a_request_that_was_refused_a_name_can_be_added_under_another():
    engine = engine_of(MODEL, TOKENIZER)
    engine.add_request("a", greedy(2), id="x")
    prepared = engine.prepare("b", greedy(2))
    with pytest.raises(RequestError, match="'x' is being served"):
        engine.add(prepared, id="x")
    assert engine.add(prepared, id="y") == "y"


def test_a_model_that_became_another_one_meanwhile_reads_the_prompt_again():
    model = tiny_llama(base=HUGGING_FACE | {"eos_token_id": None})
    engine = engine_of(model)
    prepared = engine.prepare([60, 3, 5], greedy(3))
    beyond = engine.prepare([63, 3, 5], greedy(3))
    model.resize_token_embeddings(62)
    wanted = tokens_of(engine_of(model).generate([[60, 3, 5]], greedy(3)))[0]
    with pytest.raises(RequestError, match="below the vocabulary's 62, got 63"):
        engine.add(beyond)
    engine.add(prepared)
    found = [token for _ in range(3) for update in engine.step() for token in update.tokens]
    assert tuple(found) == wanted
    model.resize_token_embeddings(70)
    assert engine.prepare([69, 3, 5], greedy(3)).tokens == (69, 3, 5)  # before the engine has looked


def test_a_stream_whose_model_became_another_one_is_refused_after_all():
    model = tiny_llama(base=HUGGING_FACE | {"eos_token_id": None})

    async def main() -> None:
        async with AsyncEngine(engine_of(model)) as serving:
            beyond, fine = serving.prepare([63, 3], greedy(3)), serving.prepare([3, 5], greedy(3))
            model.resize_token_embeddings(62)
            streams = serving.submit(beyond), serving.submit(fine)
            with pytest.raises(RequestError, match="below the vocabulary's 62, got 63"):
                async for _ in streams[0]:
                    pass
            assert len([token async for update in streams[1] for token in update.tokens]) == 3
            assert (serving.waiting, serving.running, serving.queued_tokens) == (0, 0, 0)

    asyncio.run(main())


def test_adding_does_not_look_at_the_prompt():
    engine, took = engine_of(LONG, num_pages=13_000), {}
    for length in (10, 50_000):
        prepared = [engine.prepare(torch.arange(length) % 50, greedy(1)) for _ in range(5)]
        begun = time.perf_counter()
        names = [engine.add(one) for one in prepared]
        took[length] = time.perf_counter() - begun
        for name in names:
            engine.abort(name)
    assert took[50_000] < 10 * took[10] + 0.005


def test_pictures_are_prepared_too():
    model, batch = tiny_vl2(), vl2_inputs([[(1, 1)]])
    wanted = tokens_of(engine_of(model).generate([batch], greedy(4)))[0]
    engine = engine_of(model)
    engine.add(engine.prepare(batch, greedy(4)))
    found: list[int] = []
    while engine.has_work:
        found += [token for update in engine.step() for token in update.tokens]
    assert tuple(found) == wanted


def test_settings_without_a_seed_draw_differently_each_time():
    engine = engine_of(MODEL)
    params = SamplingParams(max_tokens=20, ignore_eos=True, temperature=3.0)
    with ThreadPoolExecutor(4) as threads:
        prepared = list(threads.map(lambda _: engine.prepare([3, 5], params), range(8)))
    assert len({one.samples[0].row.key for one in prepared}) == 8
