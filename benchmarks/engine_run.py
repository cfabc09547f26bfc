"""One run of `benchmarks.engine`: contestants take turns in each case, and what is found is saved as it comes."""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_cases import CASES, QUANTIZED, Case, bytes_per_token, make_checkpoint, seeded_prompts
from benchmarks.engine_contestants import (
    CONTESTANTS,
    REFERENCE,
    Contestant,
    Worker,
    WorkerError,
    interpreter_of,
    sessions,
)
from benchmarks.engine_results import Rate, Results, Start
from modelwright.checkpoints.quantize import quantize

READ = 512 * 2**20
REST = 0.3
"""Seconds between turns, in which the threads of the last come to rest."""
LOADING, PREPARING = 600.0, 1800.0
STARTING, SHARING = "start", "shared prefix"
SHARED, OWN, REQUESTS = 2048, 32, 16


class Limits:
    """What the machine can do at all: reading with one stream a thread, and multiplying bf16."""

    def __init__(self, results: Results):
        self._found = results.limits
        self._data = torch.ones(READ // 4)
        self._sides = torch.randn(2048, 2048, dtype=torch.bfloat16), torch.randn(2048, 2048, dtype=torch.bfloat16)

    def measure(self) -> None:
        """One look at each limit."""
        start = time.perf_counter()
        self._data.sum()
        self._found["read_gb_per_s"].append(self._data.nbytes / (time.perf_counter() - start) / 1e9)
        start = time.perf_counter()
        torch.mm(*self._sides)
        self._found["bf16_tflop_per_s"].append(2 * 2048**3 / (time.perf_counter() - start) / 1e12)


class Run:
    """One run of the benchmark over some models."""

    def __init__(self, args: argparse.Namespace, results: Results):
        self._args, self._results = args, results
        self._begun = time.perf_counter()
        self._limits = Limits(results)
        self._cases = [case for case in CASES if case.name in args.cases]

    def measure(self, model: str) -> None:
        """Everything that was asked for of one model."""
        args, folder = self._args, self._folder(model)
        self._prepare(model)
        size = sum(file.stat().st_size for file in (folder / "bf16").glob("*.safetensors")) / 1e9
        self._results.weights_gb[model] = size
        if args.prepare:
            return
        taking = [each for each in self._known(model) if any(each.takes(model, case.name) for case in self._cases)]
        for number, together in enumerate(sessions(taking, size, args.memory)):
            self._session(model, number, together)
        if STARTING in args.cases and model == "L":
            self._start_again(model)
        if SHARING in args.cases and model != "V":
            self._share(model)

    def _folder(self, model: str) -> Path:
        return self._args.work / f"{model}-{self._args.layers or 'all'}"

    def _known(self, model: str) -> list[Contestant]:
        """Those of the model that somebody can run."""
        asked, peers = self._args.contestants, self._args.peers
        runnable = [each for each in CONTESTANTS if model in each.models and interpreter_of(each, peers)]
        return [each for each in runnable if not asked or each == REFERENCE or each.name in asked]

    def _prepare(self, model: str) -> None:
        """Write what the contestants read and what is not there yet."""
        folder = self._folder(model)
        checkpoint = make_checkpoint(model, self._args.layers, folder / "bf16")
        for files in dict.fromkeys(each.files for each in self._known(model)):
            if (folder / files).exists():
                continue
            say(f"{model}: writing {files}")
            if files in QUANTIZED:
                quantize(checkpoint, folder / files, QUANTIZED[files], keep_head=False)
            else:
                self._prepare_peer(model, next(each for each in self._known(model) if each.files == files))

    def _prepare_peer(self, model: str, contestant: Contestant) -> None:
        """A peer writes its own files, in a folder that is renamed when it is whole."""
        folder, part = self._folder(model), self._folder(model) / f"{contestant.files}.part"
        worker = self._worker(contestant)
        try:
            worker.ask("prepare", PREPARING, checkpoint=str(folder / "bf16"), out=str(part))
            os.replace(part, folder / contestant.files)
        except WorkerError as error:
            say(f"{model}: no {contestant.files}: {error}")
        finally:
            worker.close()

    def _worker(self, contestant: Contestant) -> Worker:
        interpreter = interpreter_of(contestant, self._args.peers)
        log = self._args.work / "logs" / f"{contestant.name.replace(' ', '-')}.log"
        return Worker(contestant, interpreter or sys.executable, self._args.threads, log)

    def _started(self, model: str, contestant: Contestant, kind: str) -> Worker | None:
        """A contestant that drew its first token, with the time that took; None if it did not."""
        files = self._folder(model) / contestant.files
        if not files.exists():
            return None
        worker = self._worker(contestant)
        arguments = {"folder": str(files), "model": model, "threads": self._args.threads} | contestant.options
        try:
            answer = worker.ask("load", LOADING, **arguments)
        except WorkerError as error:
            say(f"{model}: {error}")
            worker.close()
            return None
        name, results = contestant.name, self._results
        results.versions[name] = answer["versions"]
        results.starts.append(Start(model, name, kind, worker.age, worker.peak_gb))
        say(f"{model}: {name} drew its first token after {worker.age:.1f} s")
        return worker

    def _session(self, model: str, number: int, together: list[Contestant]) -> None:
        """The cases that are left, by contestants that are alive at the same time."""
        missing = [
            case
            for case in self._cases
            if model in case.models
            and not self._results.has(model, case.name, number)
            and any(each.takes(model, case.name) for each in together if each != REFERENCE or len(together) == 1)
        ]
        if not missing or self._late():
            return
        started = [self._started(model, each, "first") for each in together]
        workers = {worker.contestant.name: worker for worker in started if worker}
        try:
            for case in missing:
                if not self._late():
                    self._results.rates.append(self._rate(model, case, number, workers))
                    self._keep_peaks(model, workers)
                    self._results.save(self._args.out)
        finally:
            for worker in workers.values():
                worker.close()

    def _keep_peaks(self, model: str, workers: dict[str, Worker]) -> None:
        peaks = self._results.peaks_gb.setdefault(model, {})
        for name, worker in workers.items():
            peaks[name] = max(worker.peak_gb, peaks.get(name, 0.0))

    def _late(self) -> bool:
        return time.perf_counter() - self._begun > self._args.minutes * 60

    def _rate(self, model: str, case: Case, number: int, workers: dict[str, Worker]) -> Rate:
        """One case in turns; the first turn of each warms up and does not count."""
        rate, taken = Rate(model, case.name, number), {}
        if case.steps and len(case.lengths) == 1:
            rate.bytes_per_token = bytes_per_token(model, self._args.layers, case.lengths[0])
        taking = {name: worker for name, worker in workers.items() if worker.contestant.takes(model, case.name)}
        for round in range(self._args.rounds + 1):
            for name, worker in list(taking.items()):
                try:
                    self._expect(model, case, name)
                    time.sleep(REST)
                    answer = worker.ask(case.kind, self._args.patience * 4, **_asked(case, round))
                except WorkerError as error:
                    rate.left_out[name] = str(error)
                    del taking[name]
                    continue
                if round:
                    rate.tokens_per_second.setdefault(name, []).append(answer["tokens"] / answer["seconds"])
                    taken.setdefault(name, []).append(answer["seconds"])
            time.sleep(REST)
            self._limits.measure()
        rate.seconds = {name: statistics.median(each) for name, each in taken.items()}
        shown = ", ".join(f"{name} {each:.1f}" for name, each in rate.medians.items())
        say(f"{model} {case.name}: {shown}" + (f"; without {', '.join(rate.left_out)}" if rate.left_out else ""))
        return rate

    def _expect(self, model: str, case: Case, name: str) -> None:
        """Leave out who would read for too long, by what it read before.

        Raises:
            WorkerError: it would.
        """
        read = [rate.medians[name] for rate in self._results.rates if rate.model == model and name in rate.medians]
        fastest = max(read, default=0.0)
        tokens = sum(case.lengths)
        if case.steps and fastest and tokens / fastest > self._args.patience:
            raise WorkerError(f"left out, it would read {tokens} tokens for {tokens / fastest:.0f} s")

    def _start_again(self, model: str) -> None:
        """Fresh processes, one at a time, that find what the first ones left on disk."""
        for contestant in self._known(model):
            done = [each for each in self._results.starts if (each.contestant, each.kind) == (contestant.name, "again")]
            if contestant.cases or done or self._late():
                continue
            worker = self._started(model, contestant, "again")
            if worker:
                worker.close()
                self._results.save(self._args.out)

    def _share(self, model: str) -> None:
        """What the engine computes of prompts that begin alike."""
        if model in self._results.prefixes or self._late():
            return
        worker = self._started(model, REFERENCE, "for prefixes")
        if worker is None:
            return
        try:
            found = worker.ask("prefixes", LOADING, shared=SHARED, own=OWN, requests=REQUESTS)
            self._results.prefixes[model] = {name: found[name] for name in ("reused", "computed")}
            self._results.save(self._args.out)
        except WorkerError as error:
            say(f"{model}: {error}")
        finally:
            worker.close()


def _asked(case: Case, round: int) -> dict[str, Any]:
    """The arguments of a turn: what is read is new in each round, what is gone on from is not."""
    if case.kind == "picture":
        return {"seed": round}
    if case.kind == "prefill":
        return {"prompts": seeded_prompts(case.lengths, seed=1000 + round)}
    return {"prompts": seeded_prompts(case.lengths, seed=1), "steps": case.steps}


def say(text: str) -> None:
    """Progress, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
