"""Work within a budget of processor time: what is left behind goes on alone, is counted, and holds up nobody."""

import hashlib
import time
from functools import partial

import pytest

from modelwright.engine import bounded
from modelwright.engine.bounded import Bounded, TookTooLong, TooManyLeft


def burn(seconds: float) -> str:
    """Take processor time without the interpreter's lock, as llguidance does."""
    begun = time.thread_time()
    while time.thread_time() - begun < seconds:
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2000)
    return "burnt"


def wait_until_none_is_left() -> None:
    deadline = time.monotonic() + 30
    while Bounded.left and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Bounded.left == 0


def test_results_and_errors_come_back():
    worker = Bounded("test")
    assert [worker.run(partial(pow, number, 2), 1.0) for number in range(3)] == [0, 1, 4]
    with pytest.raises(KeyError, match="gone"):
        worker.run(lambda: {}["gone"], 1.0)
    assert worker.run(lambda: "still here", 1.0) == "still here"
    worker.close()


def test_what_takes_too_long_is_left_behind_and_counted_until_it_ends():
    worker = Bounded("test")
    begun = time.thread_time()
    with pytest.raises(TookTooLong):
        worker.run(lambda: burn(0.5), 0.02)
    assert time.thread_time() - begun < 0.2 and Bounded.left == 1
    assert worker.run(lambda: "next", 1.0) == "next"
    wait_until_none_is_left()
    worker.close()


@pytest.mark.slow
def test_time_that_the_machine_has_for_others_does_not_count():
    worker = Bounded("test")
    assert worker.run(lambda: time.sleep(0.2) or "slept", 0.05) == "slept"
    with pytest.raises(TookTooLong):  # though not for ever
        worker.run(lambda: time.sleep(1.0), 0.01)
    wait_until_none_is_left()
    worker.close()


def test_nothing_is_begun_while_too_many_are_left(monkeypatch):
    monkeypatch.setattr(bounded, "MOST_LEFT", 1)
    worker = Bounded("test", limited=True)
    with pytest.raises(TookTooLong):
        worker.run(lambda: burn(0.3), 0.02)
    with pytest.raises(TooManyLeft):
        worker.run(lambda: pytest.fail("begun"), 1.0)
    assert Bounded("unlimited").run(lambda: "begun", 1.0) == "begun"
    wait_until_none_is_left()
    assert worker.run(lambda: "begun", 1.0) == "begun"
    worker.close()
