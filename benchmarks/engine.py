"""The engine's speed on the CPU beside vLLM, OpenVINO GenAI, llama.cpp and transformers, in one run.

    python -m benchmarks.engine --work DIR [--peers vllm=PYTHON openvino=PYTHON llama=PYTHON] [--models L D V] ...

L is a Llama of 1.1 billion parameters, D a DeepSeek-V2 of 0.76 billion with latent attention and 32 experts, V a
DeepSeek-VL2 that D reads for; their weights are random, seeded, and bf16, and every contestant reads the same. Each
runs in a process of its own, a peer in the virtual environment that ``--peers`` names; they take turns, medians of the
rounds count, and the machine's own limits are measured between the turns. Sampling is greedy; texts are not involved.

Reading is timed on prompts that are new in each round. Going on is timed once the prompts are read; there they are the
same in each round, so that whoever keeps what it read need not read again. The first turn of a case is not counted.
What is found is saved after each case: with ``--resume`` the same command goes on from there.
"""

import argparse
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_cases import CASES, FAMILIES
from benchmarks.engine_contestants import ROOT
from benchmarks.engine_plot import plot
from benchmarks.engine_results import Results, table
from benchmarks.engine_run import SHARING, STARTING, Run


def machine_of(threads: int) -> dict[str, Any]:
    """Where this runs, and the code that runs."""
    said = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": named[0] if named else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "commit": said.stdout.strip(),
    }


def free_gb() -> float:
    """Nine tenths of the memory that is there to be taken, what files merely cache included."""
    told = Path("/proc/meminfo")
    if told.exists():
        said = dict(line.split(":", 1) for line in told.read_text().splitlines())
        return int(said["MemAvailable"].split()[0]) * 1024 / 1e9 * 0.9
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9 * 0.5


def parse() -> argparse.Namespace:
    """The command line."""
    every = [case.name for case in CASES] + [STARTING, SHARING]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoints, kept for the next run")
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON", help="vllm, openvino, llama")
    parser.add_argument("--models", nargs="+", default=[*FAMILIES], choices=[*FAMILIES])
    parser.add_argument("--layers", type=int, help="keep so many layers of each model; by default all")
    parser.add_argument("--cases", nargs="+", default=every, choices=every)
    parser.add_argument("--contestants", nargs="*", help="these beside the engine; by default all that can run")
    parser.add_argument("--rounds", type=int, default=3, help="turns each one gets in a case; their median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", type=float, default=free_gb(), help="GB that contestants may take at a time")
    parser.add_argument("--patience", type=float, default=60, help="seconds that one may read for a case of decoding")
    parser.add_argument("--minutes", type=float, default=600, help="begin no case after so many")
    parser.add_argument("--prepare", action="store_true", help="write the checkpoints and measure nothing")
    parser.add_argument("--resume", action="store_true", help="go on from --out")
    parser.add_argument("--out", type=Path, default=Path("engine.json"), help="numbers; the plot lies beside them")
    args = parser.parse_args()
    args.peers = dict(peer.split("=", 1) for peer in args.peers)
    args.work = args.work.absolute()
    return args


def main() -> None:
    """Measure, keep, print."""
    args = parse()
    torch.set_num_threads(args.threads)
    settings = {"layers": args.layers, "rounds": args.rounds, "threads": args.threads}
    machine = machine_of(args.threads)
    results = Results.resume(args.out, settings, machine) if args.resume else Results(settings, machine)
    run = Run(args, results)
    for model in args.models:
        run.measure(model)
    if not args.prepare:
        results.save(args.out)
        args.out.with_suffix(".svg").write_text(plot(results))
        print(table(results))


if __name__ == "__main__":
    main()
