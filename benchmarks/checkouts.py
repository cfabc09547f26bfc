"""The engine of one checkout beside that of another, on the same weights, in turns: what a change did to its speed.

    python -m benchmarks.checkouts --before DIR [--after DIR] --work DIR [--models L D] [--dtype float32]
                                    [--cases NAME ...] [--rounds 7] [--out FILE]

Models, cases and weights are those of ``benchmarks.engine``, and both are driven by this checkout's own worker; with
``--dtype float32`` a machine without bf16 products measures them. Both engines stay loaded, and each turn of one is
followed by the same turn of the other, the order changing from round to round; ratios are of the medians, above 1 where
the later checkout is faster. Checkpoints are written by ``--after``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.engine_cases import CASES, Case, make_checkpoint, seeded_prompts
from modelwright.checkpoints.quantize import quantize

ROOT = Path(__file__).parents[1]
FOUND = Case("found 2048", "found", (2048,))
"""A prompt that was read before: what is timed is looking for its pages, and computing its last token."""
NAMES = ("prefill 512", "decode b1 @512", "decode b8", FOUND.name)


class Engine:
    """The worker of a checkout, in a process of its own."""

    def __init__(self, checkout: Path, folder: Path, model: str, threads: int, dtype: str):
        paths = os.pathsep.join(map(str, (checkout / "src", ROOT)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.engine_peers.engine_worker"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ask(do="load", folder=str(folder), model=model, threads=threads, dtype=dtype)

    def ask(self, **request: Any) -> dict[str, Any]:
        """An answer of the worker; see ``engine_peers/protocol.py``."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def speed(self, case: Case, turn: int) -> float:
        """Tokens a second of one turn; prompts that are read are new in each turn."""
        if case.kind in ("prefill", "found"):
            seed = 100 + turn if case.kind == "prefill" else 0
            answer = self.ask(do="prefill", prompts=seeded_prompts(case.lengths, seed=seed))
        else:
            answer = self.ask(do="decode", prompts=seeded_prompts(case.lengths, seed=0), steps=case.steps)
        return answer["tokens"] / answer["seconds"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(engines: dict[str, Engine], case: Case, rounds: int) -> dict[str, Any]:
    """Medians of both and their ratio; the first turn of each is not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(rounds + 1):
        for name in sorted(engines, reverse=bool(turn % 2)):
            speed = engines[name].speed(case, turn)
            if turn:
                speeds[name].append(speed)
    medians = {name: statistics.median(each) for name, each in speeds.items()}
    return medians | {"ratio": medians["after"] / medians["before"], "turns": speeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the earlier checkout")
    parser.add_argument("--after", type=Path, default=ROOT, help="the later one; by default this")
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--models", nargs="+", default=["L", "D"], choices=["L", "D"])
    parser.add_argument("--layers", type=int, help="keep so many layers of each model; by default all")
    parser.add_argument("--weights", nargs="+", default=["bf16", "int8"], choices=["bf16", "int8", "int4"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of floats")
    parser.add_argument("--cases", nargs="+", default=list(NAMES), choices=[case.name for case in (*CASES, FOUND)])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("checkouts.json"))
    asked = parser.parse_args()
    cases = [case for case in (*CASES, FOUND) if case.name in asked.cases]
    found: dict[str, Any] = {}
    for model in asked.models:
        plain = make_checkpoint(model, asked.layers, asked.work / model / "bf16")
        for weights in asked.weights:
            folder = asked.work / model / weights
            if not folder.exists():
                quantize(plain, folder, weights)
            checkouts = {"before": asked.before.resolve(), "after": asked.after.resolve()}
            engines = {
                name: Engine(path, folder.resolve(), model, asked.threads, asked.dtype)
                for name, path in checkouts.items()
            }
            for case in cases:
                result = found[f"{model} {weights} {case.name}"] = compare(engines, case, asked.rounds)
                before, after, ratio = result["before"], result["after"], result["ratio"]
                print(f"{model} {weights} {case.name}: {before:.1f} before, {after:.1f} after, {ratio:.3f}", flush=True)
                asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            for engine in engines.values():
                engine.close()


if __name__ == "__main__":
    main()
