"""kill -9 at any moment, inside a save too: the curve of the loss is that of the run that nobody killed, to the bit."""

import os
import random
import shutil
import signal
import time

import pytest

from modelwright.training.checkpoints import Saved
from tests.training.checkpoints.small_run import STEPS, begun, curve


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The curve of a run from its beginning to its end, and the seconds that it took after its first step."""
    output = tmp_path_factory.mktemp("whole")
    process = begun(output, async_=False, pause=0.005)
    first_step(output, process)
    began = time.monotonic()
    process.join()
    assert process.exitcode == 0
    found = curve(output)
    assert sorted(found) == list(range(1, STEPS + 1))
    return found, time.monotonic() - began


def first_step(output, process):
    """Wait until the process has taken a step."""
    path = output / "curve.jsonl"
    before = path.stat().st_size if path.exists() else 0
    while process.is_alive() and not (path.exists() and path.stat().st_size > before):
        time.sleep(0.001)


def finish(output, async_):
    process = begun(output, async_=async_)
    process.join()
    assert process.exitcode == 0
    folder = output / "checkpoints"
    assert not list(folder.glob(".step*")) and (folder / "latest").read_text() == f"step-{STEPS:06d}\n"
    Saved.at(folder / f"step-{STEPS:06d}").verify()


@pytest.mark.parametrize(
    ("kills", "async_"),
    [(3, True), pytest.param(20, True, marks=pytest.mark.slow), pytest.param(20, False, marks=pytest.mark.slow)],
)
def test_killed_at_random_moments(tmp_path, whole, kills, async_):
    wanted, seconds = whole
    draw, killed = random.Random(f"{kills}, {async_}"), 0
    while killed < kills:
        output = tmp_path / str(killed // 4)  # four deaths of one run: more would find it at its end
        process = begun(output, async_=async_, pause=0.005)
        if draw.random() < 0.8:
            first_step(output, process)
        time.sleep(draw.uniform(0, 0.6 * seconds))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            shutil.rmtree(output)
        elif killed % 4 == 0 or killed == kills:
            finish(output, async_)
            assert curve(output) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("async_", [True, False])
def test_killed_at_each_operation_of_a_save(tmp_path, whole, async_):
    """From the making of the folder over each file, its way to the disk and the renaming to the removal of old ones."""
    wanted, _ = whole
    for number in range(int(async_), 75, 2):  # of the first four saves, the last two of which remove an old one
        output = tmp_path / str(number)
        process = begun(output, async_=async_, die_at=number)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        finish(output, async_)
        assert curve(output) == wanted


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_by_a_signal(tmp_path, whole, number):
    """The step is finished, its checkpoint written, the status is 3, and the curve goes on as if nothing had been."""
    wanted, _ = whole
    process = begun(tmp_path, async_=True, pause=0.02)
    first_step(tmp_path, process)
    time.sleep(0.1)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 3
    last = max(curve(tmp_path))
    Saved.at(tmp_path / "checkpoints" / f"step-{last:06d}").verify()
    finish(tmp_path, True)
    assert curve(tmp_path) == wanted
