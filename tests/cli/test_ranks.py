"""Commands whose model several processes share: the same answers, one sentence when one ends, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.checkpoints.tiny import PICTURE

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from modelwright.cli.main import main; main()"]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    "OMP_NUM_THREADS": "2",
    "HF_HUB_OFFLINE": "1",
}
NEEDS_PROC = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a process's children by ps --ppid")
LINES = [
    {"prompt_token_ids": [5, 6, 7], "max_tokens": 8},
    {"prompt_token_ids": [9] * 20, "max_tokens": 5, "temperature": 1.2, "seed": 4, "n": 2},
    {"messages": [{"role": "user", "content": "What is it?", "images": [str(PICTURE)]}], "max_tokens": 6},
]


def started(*arguments, **how):
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **how,
    )


def answers(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in LINES), "utf-8")
    return path


@pytest.mark.slow
def test_two_processes_answer_as_one(vl2, prompts, tmp_path, run):
    shared, alone = tmp_path / "shared.jsonl", tmp_path / "alone.jsonl"
    out, err = started(
        "generate", vl2, "-i", prompts, "-o", shared, "--tensor-parallel", 2, "--device", "cpu"
    ).communicate()
    assert run("generate", vl2, "-i", prompts, "-o", alone, "--device", "cpu").code == 0
    assert (out, err.count("\n")) == ("", 1) and "3 lines" in err
    assert answers(shared) == answers(alone)


def children_of(pid):
    found = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "spawn_main" in line]


@NEEDS_PROC
@pytest.mark.slow
def test_a_process_that_ends_ends_all_with_a_sentence(v2):
    session = started("chat", v2, "--tensor-parallel", 2, "--device", "cpu", stdin=subprocess.PIPE)
    session.stdin.write("Hello\n")
    session.stdin.flush()
    assert session.stdout.readline()  # the ranks have answered together
    (other,) = children_of(session.pid)
    os.kill(other, signal.SIGKILL)
    out, err = session.communicate("Hello\n", timeout=600)
    assert (session.returncode, out) == (1, "")
    assert err == "modelwright: rank 1 of 2 ended with status -9, and so do the others\n"


@NEEDS_PROC
@pytest.mark.slow
def test_the_others_end_with_the_one_that_started_them(v2):
    session = started("chat", v2, "--tensor-parallel", 2, "--device", "cpu", stdin=subprocess.PIPE)
    session.stdin.write("Hello\n")
    session.stdin.flush()
    session.stdout.readline()
    (other,) = children_of(session.pid)
    session.kill()
    session.communicate()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{other}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{other}").exists()


@pytest.mark.slow
def test_heads_that_the_ranks_do_not_divide(v2):
    ended = started("chat", v2, "Hello", "--tensor-parallel", 3, "--device", "cpu")
    out, err = ended.communicate(timeout=600)
    assert (ended.returncode, out) == (2, "")
    assert err == "modelwright: the attention heads (4) must be divisible by the ranks (3)\n"


@pytest.mark.slow
def test_torchrun_starts_the_same_command_in_each(v2, tmp_path):
    """Nothing to answer: the others wait for nobody, and end."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt_token_ids": [5, 6, 7], "max_tokens": 4}\n')
    script = tmp_path / "command.py"
    script.write_text(COMMAND[-1])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    command = ["generate", v2, "-i", source, "-o", output, "--tensor-parallel", "2", "--device", "cpu"]
    for lines in ("1 line, 4 tokens in", "1 line, 1 from before"):
        ended = subprocess.run([*torchrun, *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0 and lines in ended.stderr, ended.stderr
    assert len(answers(output)) == 1


@pytest.mark.parametrize(
    "command",
    [
        ("chat", "{model}", "Hello"),
        ("generate", "{model}", "-i", __file__, "-o", "-"),
        ("bench", "latency", "{model}"),
        ("bench", "throughput", "{model}"),
    ],
)
def test_no_rank_is_too_few(run, v2, command):
    ended = run(*(part.format(model=v2) for part in command), "--tensor-parallel", 0)
    assert (ended.code, ended.err) == (2, "modelwright: --tensor-parallel must be at least 1, got 0\n")


def test_gpus_that_are_not_there(run, v2, monkeypatch):
    monkeypatch.setattr("modelwright.serving.ranks.pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    ended = run("chat", v2, "Hello", "--tensor-parallel", 2)
    assert (ended.code, ended.err) == (
        2,
        "modelwright: --tensor-parallel (2) needs as many GPUs under the device cuda, got 1\n",
    )


def test_torchrun_started_another_number(run, v2, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    ended = run("chat", v2, "Hello", "--tensor-parallel", 2)
    sentence = "--tensor-parallel (2) must be the number of torchrun's processes (4)"
    assert (ended.code, ended.err) == (2, f"modelwright: {sentence}\n")
