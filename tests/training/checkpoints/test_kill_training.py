"""kill -9 on `Trainer` at random moments, and on its workers: its curve is that of the run that nobody killed."""

import json
import os
import random
import shutil
import signal
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from modelwright.configs.run import RunConfig
from modelwright.training.checkpoints import saved_in
from modelwright.training.report import RunReport
from modelwright.training.trainer import Trainer
from tests.checkpoints.tiny import write_v2

STEPS, KILLS = 24, 20
RUN = {
    "model": {"path": "model"},
    "output": "unused",
    "data": {"train": [{"path": "rows.jsonl"}], "seq_length": 24, "truncate": "end", "workers": 0},
    "batch": {"micro": 2, "global": 4},
    "optimizer": {"lr": 1e-2},
    "steps": STEPS,
    "checkpoint": {"every": 3, "keep": 2},
    "log": {"every": 1},
}
LORA = {"lora": {"rank": 2, "alpha": 4, "dropout": 0.2, "targets": ["attention", "dense"]}}


def train(output: Path, folder: Path, values: dict) -> None:
    """As the command does, in this process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    run = RunConfig.of(values | {"output": str(output)})
    sys.exit(Trainer(run, report=RunReport(output, run.log, lambda line: None), base=folder).fit().code)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose routers are steered, and rows of text."""
    path = tmp_path_factory.mktemp("run")
    write_v2(path / "model", topk_method="noaux_tc", scoring_func="sigmoid", n_group=2, topk_group=1)
    draw = random.Random(0)
    words = ["the", "a", "red", "blue", "circle", "square", "is", "left", "right", "above", "below", "of", "and"]
    rows = [" ".join(draw.choices(words, k=draw.randrange(5, 30))) for _ in range(60)]
    (path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def begun(output, folder, values):
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "torch.distributed.checkpoint", "transformers"])
    process = context.Process(target=train, args=(output, folder, values))
    process.start()
    return process


def curve(output):
    """Loss, norm and more of each step, as they were written."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    return [[row[key] for key in ("step", "loss", "lm", "balance", "norm", "counted", "tokens")] for row in steps]


def last_step(output):
    """The last step that is in the curve; 0 before there is one."""
    path = output / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("tune", [None, LORA])
def test_a_run_that_is_killed_at_random_moments(tmp_path, folder, tune):
    values = RUN | ({} if tune is None else {"tune": tune})
    process = begun(tmp_path / "whole", folder, values)
    process.join()
    assert process.exitcode == 0
    wanted = curve(tmp_path / "whole")
    weights = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "export").glob("*.safetensors")}
    assert weights
    draw, killed = random.Random(str(tune)), 0
    output = tmp_path / "killed"
    while killed < KILLS // (1 if tune is None else 4):
        process = begun(output, folder, values)
        wait_for = draw.randrange(0, STEPS)
        while process.is_alive() and last_step(output) < wait_for:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 0
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0 or last_step(output) > STEPS - 3:
            compare(output, folder, values, wanted, weights)
            shutil.rmtree(output)
    compare(output, folder, values, wanted, weights)


@pytest.mark.slow
def test_a_worker_that_dies(tmp_path, folder):
    """Status 4 and a checkpoint of the last step, from which the run then goes on; or the worker had done its work."""
    process = begun(tmp_path / "whole", folder, RUN)
    process.join()
    wanted, output = curve(tmp_path / "whole"), tmp_path / "run"
    working = RUN | {"data": RUN["data"] | {"workers": 2}}
    process = begun(output, folder, working)
    while process.is_alive() and last_step(output) < 2:
        time.sleep(0.002)
    workers = [int(pid) for path in Path(f"/proc/{process.pid}/task").iterdir()
               for pid in (path / "children").read_text().split()]  # fmt: skip
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == 4
    stopped = last_step(output)
    assert 2 <= stopped < STEPS
    last = saved_in(output / "checkpoints")[-1]
    assert last.step == stopped
    process = begun(output, folder, RUN)
    process.join()
    assert process.exitcode == 0 and curve(output) == wanted


def compare(output, folder, values, wanted, weights):
    """Let the run come to its end; its curve, its weights and what it leaves are those of the whole one."""
    process = begun(output, folder, values)
    process.join()
    assert process.exitcode == 0
    assert curve(output) == wanted
    assert {path.name: path.read_bytes() for path in (output / "export").glob("*.safetensors")} == weights
    assert [saved.step for saved in saved_in(output / "checkpoints")] == [STEPS - 3, STEPS]
    assert not list((output / "checkpoints").glob(".step*"))
