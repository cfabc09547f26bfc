"""Processes that make documents: the same steps whoever makes them, and what is said of one that dies."""

import os
import signal
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modelwright.data.encoding import encoder_of
from modelwright.data.examples import Chat, Message, PictureRef, Text, Tokens
from modelwright.data.prefetch import Prefetched
from modelwright.data.workers import WorkerDied, Workers
from modelwright.errors import RequestError
from tests.data.encoding.published import CHATML, byte_level
from tests.data.encoding.test_tiled import png
from tests.data.listed import Listed, batches
from tests.data.test_batches import assert_same

WORDS = encoder_of(byte_level(CHATML), SimpleNamespace(labels="assistant", seq_length=64, truncate="refuse"))


def rows(count: int) -> Listed:
    return Listed([Text("hello " * (1 + row % 7)) for row in range(count)])


@pytest.mark.slow
def test_the_order_depends_on_no_worker_and_what_they_make_ahead_is_not_in_the_state():
    """And a broken row, a dead worker and one after the end are told as without workers."""
    how: dict[str, Any] = {"encoder": WORDS, "step": 3, "window": 8}
    alone, helped = batches(rows(20), **how), batches(rows(20), workers=2, **how)
    try:
        for _ in range(5):
            assert_same(next(helped), next(alone))
            assert helped.state() == alone.state()
        state = helped.state()
        expected = list(islice(helped, 2))
        helped.restore(state)
        for step in expected:
            assert_same(next(helped), step)
        for process in helped._workers._processes:
            os.kill(process.child.pid, signal.SIGKILL)
        with pytest.raises(
            WorkerDied, match=r"a data worker was ended by SIGKILL while it made the document of rows.jsonl:"
        ):
            list(islice(helped, 40))
        with pytest.raises(WorkerDied):  # it stays so
            next(helped)
    finally:
        helped.close()
    assert all(process.child.returncode is not None for process in helped._workers._processes)


@pytest.mark.slow
def test_pictures_are_decoded_by_workers(processor):
    encoder = encoder_of(processor, SimpleNamespace(labels="assistant", seq_length=900, truncate="refuse"))
    turns = [
        Chat((Message("user", (PictureRef(png(20 + row, 30)), "what")), Message("assistant", (str(row),))))
        for row in range(6)
    ]
    broken = Chat((Message("user", (PictureRef(png(9, 9)[:-30]), "what")), Message("assistant", ("a",))))
    how: dict[str, Any] = {"encoder": encoder, "seq_length": 900, "step": 2, "on_error": "skip"}
    alone, helped = (batches(Listed([*turns, broken]), workers=workers, **how) for workers in (0, 1))
    try:
        for _ in range(3):
            one = next(alone)
            assert_same(next(helped), one)
        assert one.broken >= 1 and all("images" in each for each in one.micro)
    finally:
        helped.close()


@pytest.mark.slow
def test_a_worker_says_what_went_wrong():
    workers = Workers(WORDS, 1)
    try:
        good, bad = (workers.submit(Listed([each])[0], False) for each in (Text("hello"), Tokens(np.array([-1]))))
        assert good.result().counted and not good.result().is_outline
        with pytest.raises(RequestError, match=r"rows.jsonl:1: input_ids must be at least 0, got -1"):
            bad.result()
        ours = workers.submit("no example", False)  # pyright: ignore[reportArgumentType]
        with pytest.raises(RuntimeError, match="AttributeError: 'str' object has no attribute 'content'"):
            ours.result()
        assert workers.submit(Listed([Text("hello")])[0], False).result().counted  # it lives on
        os.kill(workers._processes[0].child.pid, signal.SIGINT)  # is meant for the loop
        assert workers.submit(Listed([Text("hello")])[0], False).result().counted
    finally:
        workers.close()


def test_what_is_made_ahead_ends_with_its_error_and_can_be_left():
    def numbers():
        yield from range(3)
        raise RequestError("the end")

    ahead = Prefetched(numbers(), 2)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(RequestError, match="the end"):
            next(ahead)
    assert list(Prefetched(iter("abc"), 1)) == ["a", "b", "c"]
    left = Prefetched(iter(range(10**9)), 2)
    assert next(left) == 0
    left.close()
    assert not left._thread.is_alive()
