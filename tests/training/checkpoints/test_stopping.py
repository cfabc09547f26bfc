"""Signals and the clock ask for a checkpoint or an end after a step; handlers come back; a second signal ends all."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from modelwright.training.checkpoints import Asked, Stopping


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_for_the_end_after_the_step(number):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with Stopping() as stopping:
        assert stopping.after_step() == Asked()
        os.kill(os.getpid(), number)
        assert stopping.after_step() == Asked(save=True, stop=number.name)
        stopping.saved()
        assert stopping.after_step().stop == number.name
    assert before == [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]


def test_usr1_asks_for_a_checkpoint_once():
    with Stopping() as stopping:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stopping.after_step() == Asked(save=True)
        stopping.saved()
        assert stopping.after_step() == Asked()


def test_the_clock_asks_whenever_so_many_minutes_of_the_run_have_passed():
    """However many checkpoints there were: 14 of 15 minutes always leave one for the end of a job."""
    clock = Clock()
    with Stopping(minutes=14, clock=clock) as stopping:
        for now, asked in (
            (0, False),
            (13.9, False),
            (14, True),
            (14.1, False),
            (27.9, False),
            (45, True),
            (55, False),
        ):
            clock.now = 1000 + 60 * now
            assert stopping.after_step().save is asked, now
            if asked:
                stopping.saved()
            if now == 13.9:
                stopping.saved()  # for another reason


def test_outside_the_main_thread_the_clock_alone_is_asked():
    before, found = signal.getsignal(signal.SIGTERM), []

    def run():
        clock = Clock()
        with Stopping(minutes=1, clock=clock) as stopping:
            found.append(signal.getsignal(signal.SIGTERM))
            clock.now += 61
            found.append(stopping.after_step())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before, Asked(save=True)]


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), Stopping():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


TWICE = """
import os, signal, sys, time
from modelwright.training.checkpoints.stopping import Stopping
with Stopping() as stopping:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stopping.after_step().stop == "SIGTERM"
    print("noted", flush=True)
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    time.sleep(30)
print("went on")
"""


@pytest.mark.slow
@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_the_process_at_once(second):
    done = subprocess.run(
        [sys.executable, "-c", TWICE, second], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == -getattr(signal, second) and done.stdout == "noted\n"
