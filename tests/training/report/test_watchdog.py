"""What ends a run that hangs: stacks in a file, exit code 4, and nothing where steps go on."""

import signal
import subprocess
import sys
import time

from modelwright.training.report.watchdog import NAME, Watchdog

HANGS = """
import sys, time
from pathlib import Path
from modelwright.training.report.watchdog import Watchdog

def stuck_in_here():
    time.sleep(6000)

dog = Watchdog(0.3, Path(sys.argv[1]), lambda line: print(line, flush=True))
dog.start()
dog.alive("step 7")
Path(sys.argv[1], "begun").touch()
stuck_in_here()
"""


def test_a_run_that_hangs_is_ended_with_its_stacks(tmp_path):
    done = subprocess.run([sys.executable, "-c", HANGS, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stdout == f"step 7 was not done within limits.patience (0.3 s); stacks in {tmp_path / NAME}\n"
    stacks = (tmp_path / NAME).read_text()
    assert "step 7 for 0.3 s" in stacks and "stuck_in_here" in stacks


def test_the_time_for_which_the_whole_process_was_stopped_does_not_count(tmp_path):
    """As by Ctrl-Z: a run that hangs then has what was left of its patience."""
    patience, stopped = 1.5, 2.0
    code = HANGS.replace("0.3", str(patience))
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as process:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        time.sleep(stopped)
        process.send_signal(signal.SIGCONT)
        went_on = time.monotonic()
        assert process.wait() == 4
    assert time.monotonic() - went_on > 0.5 * patience


def test_a_run_that_lives_before_the_watchdog_looks_has_its_patience_and_no_more(tmp_path, monkeypatch):
    """After an hour of Ctrl-Z; the clock is one of ours."""
    now, ended = 0.0, []
    monkeypatch.setattr("modelwright.training.report.watchdog.time.monotonic", lambda: now)
    dog = Watchdog(600, tmp_path, lambda _: None, ended.append)

    class Stopped:
        def wait(self, seconds):
            nonlocal now
            if now == 0.0:
                now = 3600.0
                dog.alive("step 2")
            now += seconds
            return now > 5000

    monkeypatch.setattr(dog, "_stopped", Stopped())
    dog._watch()
    assert ended == [4] and 4200 <= now < 4202


def test_a_run_that_goes_on_is_left_alone(tmp_path):
    ended = []
    dog = Watchdog(0.4, tmp_path, lambda _: None, ended.append)
    dog.start()
    for step in range(8):
        dog.alive(f"step {step}")
        time.sleep(0.1)
    dog.stop()
    time.sleep(0.5)
    assert ended == [] and not (tmp_path / NAME).exists()
