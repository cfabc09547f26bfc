"""Our server beside vLLM's and llama.cpp's over HTTP, in one run: what a client sees of each.

    python -m benchmarks.serve_peers --work DIR [--peers vllm=PYTHON llama=LLAMA_SERVER] [--models L D] ...

L and D are those of `benchmarks.engine`, of seeded random weights, with a tokenizer whose every token is a word. Each
client has so many requests in flight, each of 256 token ids that no other request has and 64 to draw, greedily and
past the end token, in a stream. The servers of a model are started one after another and stay; then they take turns,
in each round one turn for each number in flight, while the others are stopped. Medians of the rounds count. At last
those named by ``--again`` are started once more, alone, and find what they compiled before.
"""

import argparse
import asyncio
import itertools
import json
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_cases import make_checkpoint, seeded_prompts
from benchmarks.serve_client import Timed, percentile
from benchmarks.serve_contestants import CONTESTANTS, Contestant, Gone, Running, Served
from benchmarks.serve_words import write_gguf, write_words

TURNS = {1: 2, 4: 4, 16: 16}
"""Requests of a turn, by how many are in flight."""
READ, DRAWN = 256, 64
BODY = {"model": "m", "temperature": 0, "ignore_eos": True}
FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
KEPT = ("starts", "peaks_gb")
WARMING, ALIKE = 4, 16
"""Tokens of the requests that warm a server up, and how many short ones are compared by their first token."""


def body(prompt: list[int], tokens: int) -> dict[str, Any]:
    return BODY | {"prompt": prompt, "max_tokens": tokens}


async def turn(running: Running, flight: int, prompts: list[list[int]], tokens: int) -> dict[str, float]:
    """All prompts, so many at a time, as soon as one has ended the next."""
    left, timed = iter(prompts), list[Timed]()

    async def ask() -> None:
        for prompt in left:
            timed.append(await running.ask(body(prompt, tokens)))

    start = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(flight)))
    seconds = time.perf_counter() - start
    wrong = [each for each in timed if not each.whole or each.tokens != tokens or each.first is None]
    if wrong:
        raise Gone(f"{running.contestant.name} left {len(wrong)} of {len(timed)} requests unanswered: {wrong[0]}")
    firsts, gaps = [each.first or 0.0 for each in timed], [gap for each in timed for gap in each.gaps]
    return {
        "tokens_per_second": tokens * len(timed) / seconds,
        "ttft_p50": percentile(firsts, 0.5),
        "ttft_p99": percentile(firsts, 0.99),
        "itl_p50_ms": 1e3 * percentile(gaps, 0.5),
        "itl_p99_ms": 1e3 * percentile(gaps, 0.99),
        "frames_per_token": (len(gaps) + len(timed)) / (tokens * len(timed)),
    }


async def first_words(running: Running) -> list[str]:
    """The first token of some short prompts, as text; they are asked all at once, which warms up a batch of them."""
    prompts = seeded_prompts((16,) * ALIKE, seed=2)
    told = await asyncio.gather(*(running.ask(body(prompt, WARMING)) for prompt in prompts))
    return [each.text.split()[0] if each.text.strip() else "" for each in told]


class Run:
    """Measures, and keeps what was found in a file after each turn."""

    def __init__(self, args: argparse.Namespace):
        self._args, self._seeds = args, itertools.count(100)
        self.found: dict[str, Any] = {
            "settings": {"read": READ, "drawn": DRAWN, "requests": TURNS, "rounds": args.rounds, "layers": args.layers},
            "machine": machine(args.threads),
            "versions": versions(args.peers),
            "turns": [],
            "starts": [],
            "peaks_gb": [],
            "same_first_tokens": [],
            "left_out": [],
        }
        if args.resume:
            kept = json.loads(args.out.read_text())
            self.found |= {name: kept[name] for name in (*KEPT, "turns", "same_first_tokens", "left_out")}

    def measure(self, model: str) -> None:
        """All rounds of one of the models."""
        folder = make_checkpoint(model, self._args.layers, self._args.work / model / "bf16")
        write_words(folder, 32000)
        contestants = [each for each in CONTESTANTS if each.name in self._args.contestants]
        for contestant in contestants:
            if contestant.gguf:
                served = self._served(model, contestant)
                write_gguf(served.folder, served.gguf, served.dtype)
        servers: list[Running] = []
        try:
            self._start_all(model, contestants, servers)
            for round in range(self._args.rounds):
                shift = round % max(1, len(servers))
                for flight in self._args.flights:
                    self._turns(model, round, flight, servers[shift:] + servers[:shift])
        finally:
            for server in servers:
                server.close()
                self._keep("peaks_gb", model, server, gb=server.peak_gb)
        for contestant in contestants:
            if contestant.name in self._args.again and (
                server := self._start(model, contestant, "again", self._args.port)
            ):
                server.close()

    def _served(self, model: str, contestant: Contestant) -> Served:
        folder = self._args.work / model / "bf16"
        return Served(folder, model == "D", self._args.threads, contestant.dtype)

    def _start_all(self, model: str, contestants: list[Contestant], servers: list[Running]) -> None:
        """Those that answer, each warm; what they say first is compared with what the first of them says."""
        said: list[list[str]] = []
        for place, contestant in enumerate(contestants):
            running = self._start(model, contestant, "first", self._args.port + place)
            if running is None:
                continue
            servers.append(running)
            asyncio.run(turn(running, 1, self._prompts(1), WARMING))
            said.append(asyncio.run(first_words(running)))
            same = sum(mine == first for mine, first in zip(said[-1], said[0], strict=True))
            self._keep("same_first_tokens", model, running, of=ALIKE, same=same)
            running.pause()

    def _start(self, model: str, contestant: Contestant, kind: str, port: int) -> Running | None:
        """A server that told its first token; None if it did not."""
        log = self._args.work / "logs" / f"{model} {contestant.name}.log"
        program = self._args.peers.get(contestant.peer, "")
        running = Running(contestant, program, self._served(model, contestant), port, log)
        try:
            running.wait(body(list(range(300, 316)), 1))
        except Gone as error:
            running.close()
            self._keep("left_out", model, running, why=str(error))
            return None
        except BaseException:
            running.close()
            raise
        self._keep("starts", model, running, which=kind, seconds=running.seconds)
        return running

    def _turns(self, model: str, round: int, flight: int, servers: list[Running]) -> None:
        for server in list(servers):
            server.resume()
            time.sleep(self._args.rest)
            try:
                measured = asyncio.run(turn(server, flight, self._prompts(TURNS[flight]), DRAWN))
            except Gone as error:
                self._keep("left_out", model, server, flight=flight, why=str(error))
                continue
            finally:
                server.pause()
            self._keep("turns", model, server, flight=flight, round=round, **measured)

    def _prompts(self, count: int) -> list[list[int]]:
        return seeded_prompts((READ,) * count, seed=next(self._seeds))

    def _keep(self, kind: str, model: str, server: Running, **told: Any) -> None:
        self.found[kind].append({"model": model, "server": server.contestant.name} | told)
        shown = " ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in told.items()
        )
        print(
            f"{time.strftime('%H:%M:%S')} {kind}: {model} {server.contestant.name} {shown}", file=sys.stderr, flush=True
        )
        self._args.out.write_text(json.dumps(self.found, indent=1) + "\n")


def machine(threads: int) -> dict[str, Any]:
    """The processor and what it can do."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    said = dict(line.split(":", 1) for line in lines if ":" in line)
    said = {name.strip(): value.strip() for name, value in said.items()}
    return {
        "processor": said.get("model name", platform.machine()),
        "features": [name for name in FEATURES if name in said.get("flags", "").split()],
        "threads": threads,
    }


def versions(peers: dict[str, str]) -> dict[str, str]:
    """Of ours, of torch, and of what the peers say of themselves."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    found = {"modelwright": commit.stdout.strip(), "torch": torch.__version__}
    asks = {"vllm": ["-c", "import vllm; print(vllm.__version__)"], "llama": ["--version"]}
    for name, program in peers.items():
        said = subprocess.run([program, *asks[name]], capture_output=True, text=True)
        lines = [line for line in (said.stdout + said.stderr).splitlines() if line.strip()]
        found[name] = next((line for line in lines if line.startswith("version")), lines[0] if lines else "unknown")
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: a row for each model, number in flight and server; medians of the rounds."""
    rows: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for each in found["turns"]:
        rows[each["model"], each["flight"], each["server"]].append(each)
    lines = [
        "| | in flight | server | tokens/s | TTFT P50, P99 (s) | ITL P50, P99 (ms) |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for (model, flight, server), turns in sorted(rows.items()):
        rate, first, last, gap, worst = (
            statistics.median(each[name] for each in turns)
            for name in ("tokens_per_second", "ttft_p50", "ttft_p99", "itl_p50_ms", "itl_p99_ms")
        )
        lines.append(
            f"| {model} | {flight} | {server} | {rate:.1f} | {first:.2f}, {last:.2f} | {gap:.0f}, {worst:.0f} |"
        )
    lines += ["", "| | server | start to first token, and again (s) | peak memory (GB) |", "|---|---|---:|---:|"]
    for model, server in dict.fromkeys((each["model"], each["server"]) for each in found["starts"]):
        own = {
            kind: [each for each in found[kind] if (each["model"], each["server"]) == (model, server)] for kind in KEPT
        }
        starts = ", ".join(f"{each['seconds']:.1f}" for each in own["starts"])
        peaks = ", ".join(f"{each['gb']:.2f}" for each in own["peaks_gb"])
        lines.append(f"| {model} | {server} | {starts} | {peaks} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoints, kept for the next run")
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PROGRAM", help="vllm's python, llama-server")
    parser.add_argument("--models", nargs="+", default=["L", "D"], choices=["L", "D"])
    parser.add_argument("--contestants", nargs="+", default=[each.name for each in CONTESTANTS])
    parser.add_argument("--again", nargs="*", default=[each.name for each in CONTESTANTS])
    parser.add_argument("--flights", nargs="+", type=int, default=[*TURNS], choices=[*TURNS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, help="keep so many layers of each model; by default all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rest", type=float, default=1.0, help="seconds between two turns")
    parser.add_argument("--port", type=int, default=8140)
    parser.add_argument("--resume", action="store_true", help="add to what --out has")
    parser.add_argument("--out", type=Path, default=Path("serve_peers.json"))
    args = parser.parse_args()
    args.peers = dict(peer.split("=", 1) for peer in args.peers)
    known = {"", *args.peers}
    args.contestants = [each.name for each in CONTESTANTS if each.peer in known and each.name in args.contestants]
    args.work = args.work.absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended
    run = Run(args)
    for model in args.models:
        run.measure(model)
    print(table(run.found))


if __name__ == "__main__":
    main()
