"""Several threads at one engine: one is served, the others are told in a sentence, and nothing is mixed up."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelwright.engine.one_thread import OneThread
from modelwright.errors import RequestError
from tests.engine.engines import check_idle, engine_of, expected, greedy
from tests.llamas import HUGGING_FACE, tiny_llama

SENTENCE = "an engine serves one thread at a time, and another one is using it"
PROMPT = [3, 9, 4, 12, 7]


@pytest.mark.parametrize("call", ["generate", "add_request", "step", "abort", "forget_prefixes"])
def test_another_thread_is_told(call):
    model = tiny_llama(base=HUGGING_FACE)
    engine, calls = engine_of(model), []
    arguments = {"generate": [[PROMPT]], "add_request": [PROMPT], "abort": ["request-0"]}.get(call, [])

    def elsewhere(update) -> None:
        """Called by the first thread between two steps, while it is in the engine."""
        if not calls:
            with ThreadPoolExecutor(1) as pool:
                calls.append(pool.submit(getattr(engine, call), *arguments).exception())

    (result,) = engine.generate([PROMPT], greedy(6), elsewhere)
    assert result.completions[0].tokens == expected(model, PROMPT, 6).tokens
    assert isinstance(calls[0], RequestError) and re.match(SENTENCE, str(calls[0]))
    check_idle(engine)


def test_threads_that_all_ask_are_served_or_told():
    """Never an assertion, and never tokens of another one's prompt."""
    model = tiny_llama(base=HUGGING_FACE)
    engine, barrier = engine_of(model), threading.Barrier(4)
    wanted = {first: expected(model, [first, *PROMPT], 5).tokens for first in range(3, 7)}

    def ask(first: int) -> list:
        barrier.wait()
        found = []
        for _ in range(8):
            try:
                (result,) = engine.generate([[first, *PROMPT]], greedy(5))
                found.append(result.completions[0].tokens)
            except RequestError as error:
                assert re.match(SENTENCE, str(error))
        return found

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(wanted, pool.map(ask, wanted), strict=True))
    assert any(found.values())
    assert all(tokens == wanted[first] for first in wanted for tokens in found[first])
    check_idle(engine)


def test_a_thread_may_go_deeper_and_come_back_after_an_error():
    door = OneThread()
    with pytest.raises(ZeroDivisionError), door, door:
        raise ZeroDivisionError
    with ThreadPoolExecutor(1) as pool, door:
        assert isinstance(pool.submit(door.__enter__).exception(), RequestError)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(door.__enter__).result()
