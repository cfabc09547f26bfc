"""``modelwright bench``: measures an engine with requests that start together, or that come at a rate."""

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate, cycle, islice
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn

from modelwright.cli import terminal
from modelwright.cli.asking import Reader
from modelwright.cli.bench_options import BenchOptions
from modelwright.cli.bench_report import as_object, as_rows, title
from modelwright.cli.bench_round import Round, run_round
from modelwright.cli.console import errors, say, write
from modelwright.cli.interrupt import INTERRUPTED
from modelwright.cli.lines import read_lines
from modelwright.cli.memory import peak_bytes
from modelwright.cli.source import open_lines
from modelwright.cli.tables import write_lines, write_table
from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.errors import RequestError
from modelwright.processing.batching import ProcessedPrompt
from modelwright.serving.load import pick_device
from modelwright.serving.opened import Opened, find_model
from modelwright.serving.prompts import read_template
from modelwright.serving.quiet import quieten_libraries
from modelwright.serving.ranks import Ranks


def run_bench(options: BenchOptions) -> int:
    """Load, run the rounds, and print what they took; returns the exit status."""
    quieten_libraries()
    machine = options.measuring.machine
    with Ranks(machine.tensor_parallel, machine.device, say) as ranks:
        return ranks.follow() if ranks.follows else _run(options, ranks)


def _run(options: BenchOptions, ranks: Ranks) -> int:
    machine = options.measuring.machine
    pick_device(machine.device)
    named = find_model(options.model)
    template = read_template(options.measuring.chat_template)
    try:
        start = time.perf_counter()
        opened = terminal.load(named, "generate", _limits(options), machine, ranks, template=template)
        load_seconds = time.perf_counter() - start
        model, engine = opened.loaded.model, opened.engine
        given = None if options.measuring.input is None else _read(options, template, opened)
        rounds = _measure(options, engine, model.get_input_embeddings().weight.shape[0], given)
        ranks.let_go(engine)
    except KeyboardInterrupt:
        return INTERRUPTED
    report = _describe(options, model, engine, rounds) | {"load_seconds": round(load_seconds, 4)}
    if options.measuring.as_json:
        write(json.dumps(report) + "\n")
    else:
        write_lines(title(report))
        write_table(as_rows(report), ("", "mean", "P50", "P99"))
    return 0


def _limits(options: BenchOptions) -> dict[str, Any]:
    """The engine's options; for latency, whose rounds must do the same work, no page is found again."""
    asked = options.measuring.engine.given()
    if options.kind == "latency":
        return {"max_batch": options.requests, "reuse_prefixes": False} | asked
    return asked


def _read(options: BenchOptions, template: str | None, opened: Opened) -> list[ProcessedPrompt]:
    """As many prompts of the input as a round has requests, from its beginning again where it holds fewer."""
    path, requests, reader = options.measuring.input, options.requests, Reader(opened, {}, template)
    assert path is not None
    with open_lines(path) as source:
        prompts = [reader.read(line).prompt for line in islice(read_lines(source, {}), requests)]
    if not prompts:
        raise RequestError(f"--input {path}: there is no line in it")
    return list(islice(cycle(prompts), requests))


def _random(lengths: Iterable[int], vocabulary: int, draw: random.Random) -> list[ProcessedPrompt]:
    """Token ids drawn evenly from the vocabulary."""
    return [ProcessedPrompt.of_tokens(draw.choices(range(vocabulary), k=length)) for length in lengths]


def _arrivals(options: BenchOptions, draw: random.Random) -> list[float]:
    """Seconds after the start: all at once, or with exponential gaps, the first at 0."""
    rate = options.request_rate
    if rate is None:
        return [0.0] * options.requests
    return list(accumulate((draw.expovariate(rate) for _ in range(options.requests - 1)), initial=0.0))


def _measure(
    options: BenchOptions, engine: Engine, vocabulary: int, given: list[ProcessedPrompt] | None
) -> list[Round]:
    """The measured rounds; random prompts are new in each, and warm-up reads random ones that come all at once."""
    measuring, rounds = options.measuring, []
    draw = random.Random(measuring.seed)
    lengths = [measuring.input_len] * options.requests if given is None else [len(prompt) for prompt in given]
    if max(lengths) + measuring.output_len > engine.context:
        raise RequestError(
            f"a prompt of {max(lengths)} tokens and --output-len ({measuring.output_len}) must be at most the context "
            f"({engine.context} tokens) together"
        )
    params = SamplingParams(temperature=0.0, max_tokens=measuring.output_len, ignore_eos=True)
    with _spinner() as show:
        for number in range(measuring.warmup):
            show(f"warming up, round {number + 1} of {measuring.warmup}")
            run_round(engine, _random(lengths, vocabulary, draw), [0.0] * options.requests, params)
        for number in range(options.repeats):
            show(f"measuring, round {number + 1} of {options.repeats}")
            prompts = given or _random(lengths, vocabulary, draw)
            rounds.append(run_round(engine, prompts, _arrivals(options, draw), params))
    return rounds


def _describe(options: BenchOptions, model: Any, engine: Engine, rounds: list[Round]) -> dict[str, Any]:
    """The object of ``--json``: what was measured with what, then the numbers."""
    asked = {"benchmark": options.kind, "model": options.model, "device": str(model.device)}
    asked |= {"dtype": str(model.dtype).removeprefix("torch."), "engine": asdict(engine.config)}
    asked |= {"ranks": options.measuring.machine.tensor_parallel}
    asked |= {"requests": options.requests, "request_rate": options.request_rate, "rounds": options.repeats}
    asked["prompt_tokens"] = sum(record.prompt_tokens for record in rounds[0].records)
    asked["output_tokens"] = sum(len(record.tokens) for record in rounds[0].records)
    return asked | as_object(rounds) | {"peak_memory_bytes": dict(peak_bytes(str(model.device)))}


@contextmanager
def _spinner() -> Iterator[Callable[[str], None]]:
    """What is being done, gone when it is; nothing where stderr is no terminal."""
    if not errors.is_terminal:
        yield lambda _: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=errors, transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda text: bars.update(task, description=text)
