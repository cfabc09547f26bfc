"""Thousands of small requests with aborts at random: pages come back, tables empty, memory stays where it was."""

import gc
import random
import tracemalloc
from typing import Any

import pytest

from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from tests.engine.engines import check_idle, engine_of
from tests.llamas import HUGGING_FACE, tiny_llama

SMALL = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}


def small_engine() -> Engine:
    model = tiny_llama(base=HUGGING_FACE | SMALL | HEADS)
    return engine_of(model, max_batch=32, token_budget=128, page_size=2, num_pages=96)


def ask(engine: Engine, chance: random.Random) -> str:
    """A short request; some begin alike, some have several outputs, some want log-probabilities."""
    prompt = [chance.randint(2, 5) for _ in range(chance.randint(1, 8))]
    wants: dict[str, Any] = chance.choice(
        [{}, {}, {"temperature": 0.0}, {"n": 2}, {"logprobs": 1, "prompt_logprobs": 1}]
    )
    params = SamplingParams(**{"max_tokens": chance.randint(1, 6), "seed": chance.randint(0, 99)} | wants)
    return engine.add_request(prompt, params, priority=chance.randint(-1, 1))


def soak(engine: Engine, requests: int, chance: random.Random) -> int:
    """Serve so many, about a fifth of them aborted at some moment; returns how many were."""
    asked = aborted = 0
    living: list[str] = []
    while asked < requests or engine.has_work:
        for _ in range(min(chance.randint(0, 12), requests - asked)):
            living.append(ask(engine, chance))
            asked += 1
        engine.step()
        living = [name for name in living if engine.serves(name)]
        for name in chance.sample(living, min(len(living), chance.randint(0, 2))):
            aborted += bool(engine.abort(name))
    check_idle(engine)
    return aborted


def sizes(engine: Engine) -> dict[str, int]:
    """Every container of the engine, its scheduler and its pool, and how much is in it."""
    parts = (
        engine,
        engine._intake,
        engine._runner,
        engine._scheduler,
        engine._scheduler._queues,
        engine._scheduler.pool,
    )
    return {
        f"{type(part).__name__}.{name}": len(value)
        for part in parts
        for name, value in vars(part).items()
        if isinstance(value, dict | list | set)
    }


def traced() -> int:
    """Bytes that Python holds."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def check_soak(first: int, then: int) -> None:
    """After the `first` requests have filled the caches, `then` more leave nothing behind.

    Python's own allocations are traced; 32 KiB are the noise of freed lists and resized tables.
    """
    engine, chance = small_engine(), random.Random(0)
    for batch in range(1, engine.config.max_batch + 1):  # each has its tape
        engine.generate([[2, 3]] * batch, SamplingParams(max_tokens=3, ignore_eos=True))
    tracemalloc.start()
    soak(engine, first, chance)
    before, held = sizes(engine), traced()
    aborted = soak(engine, then, chance)
    grown = traced() - held
    tracemalloc.stop()
    assert aborted > then // 20
    assert grown < 32 * 1024
    after = sizes(engine)
    bounded = {"BlockPool._blank", "BlockPool._page", "BlockPool._cached"}  # pages are blank or findable
    assert {name: size for name, size in after.items() if not name.startswith("BlockPool")} == {
        name: size for name, size in before.items() if not name.startswith("BlockPool")
    }
    pool = engine._scheduler.pool
    assert pool.available == pool.num_blocks == len(pool._blank) + len(pool._cached)
    assert all(after[name] <= pool.num_blocks for name in bounded)


@pytest.mark.slow
def test_five_hundred_requests():
    check_soak(300, 200)


@pytest.mark.slow
def test_ten_thousand_requests():
    """Python's spare blocks have nearly their number by 4000 requests: 200 after 2000, 300 after 10,000."""
    check_soak(4000, 6000)
