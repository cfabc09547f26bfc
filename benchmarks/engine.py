"""The engine's speed on the CPU beside our own ``generate()`` and transformers, on models made for it, in one process.

    python benchmarks/engine.py [--models L D] [--layers 4] [--rounds 3] [--threads N] [--out results/engine.json]

L is a Llama of 1.1 billion parameters, D a DeepSeek-V2 of 0.76 billion with latent attention and 32 experts, V a
DeepSeek-VL2 that D reads for; their weights are random, seeded, and bf16. Every way reads one checkpoint; they take
turns, medians count, and the machine's own limits are measured between the turns: reading 512 MiB, and multiplying
bf16. ``--layers`` keeps so many layers of each model, for a quick look. What it takes from loading to the first token,
and the memory of that, is measured in processes of their own. Sampling is greedy; texts are not involved.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from modelwright import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekVLV2Config,
    DeepseekVLV2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}
DEEPSEEK: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 32,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}
VISION: dict[str, Any] = {"image_size": 384, "patch_size": 14, "width": 768, "layers": 12, "heads": 12}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "L": (LlamaConfig, LlamaForCausalLM),
    "D": (DeepseekV2Config, DeepseekV2ForCausalLM),
    "V": (DeepseekVLV2Config, DeepseekVLV2ForCausalLM),
}
READ = 512 * 2**20
STEPS = 16
"""Tokens that a timed piece of decoding has; each is a step of the whole batch."""


@dataclass(frozen=True)
class Case:
    """``batch`` prompts of ``context`` tokens; what is timed is reading them, or going on from them."""

    name: str
    batch: int
    context: int
    decodes: bool


CASES = (
    Case("prefill 512", 1, 512, False),
    Case("prefill 2048", 1, 2048, False),
    Case("decode b1 @512", 1, 512, True),
    Case("decode b1 @4096", 1, 4096, True),
    Case("decode b8 @512", 8, 512, True),
    Case("decode b32 @512", 32, 512, True),
)


@dataclass(frozen=True)
class Machine:
    """Where this ran, and its limits as medians over the run: GB/s read, bf16 TFLOP/s."""

    processor: str
    threads: int
    torch: str
    transformers: str
    read: float
    multiply: float


@dataclass(frozen=True)
class Rate:
    """Tokens per second of each way in one case; None where the way does not take it."""

    model: str
    case: str
    tokens_per_second: dict[str, float | None]


@dataclass(frozen=True)
class Start:
    """One process from its first line of Python to its first token, and the most memory it held."""

    model: str
    way: str
    seconds: float
    peak_gb: float
    weights_gb: float


class EngineWay:
    """Ours: requests through the engine, step by step."""

    def __init__(self, folder: Path, model: str):
        self._model = FAMILIES[model][1].from_pretrained(folder, dtype=torch.bfloat16).eval()
        self._settings = EngineConfig(max_batch=32, max_context=8192, num_pages=2400, reuse_prefixes=False)
        self._engine = Engine(self._model, self._settings)

    def prefill(self, prompts: list[list[int]]) -> float:
        """Seconds from the request to its first token."""
        start = time.perf_counter()
        self._engine.generate(prompts, _greedy(1))
        return time.perf_counter() - start

    def decode(self, prompts: list[list[int]]) -> float:
        """Seconds of `STEPS` steps once all prompts are read."""
        engine, reading = self._engine, set()
        for prompt in prompts:
            reading.add(engine.add_request(prompt, _greedy(STEPS * 8)))
        names = set(reading)
        while reading:
            reading -= {update.request for update in engine.step()}
        start = time.perf_counter()
        for _ in range(STEPS):
            engine.step()
        taken = time.perf_counter() - start
        for name in names:
            engine.abort(name)
        return taken


class GenerateWay:
    """``generate()``, ours or transformers' own: a whole run less the run that stops at the first token."""

    def __init__(self, model: Any):
        self._model = model.eval()

    def prefill(self, prompts: list[list[int]]) -> float:
        """Seconds of a run of one token."""
        return self._run(prompts, 1)

    def decode(self, prompts: list[list[int]]) -> float:
        """Seconds of `STEPS` further tokens."""
        whole = self._run(prompts, STEPS + 1)
        return max(whole - self._run(prompts, 1), 1e-9)

    @torch.no_grad()
    def _run(self, prompts: list[list[int]], new: int) -> float:
        ids = torch.tensor(prompts)
        limits = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        start = time.perf_counter()
        self._model.generate(ids, attention_mask=torch.ones_like(ids), **limits)
        return time.perf_counter() - start


Way = EngineWay | GenerateWay


def _greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


def config_of(model: str, layers: int | None) -> Any:
    """The config of one of the models, of fewer layers if asked."""
    build = FAMILIES[model][0]
    if model == "L":
        return build(**LLAMA | _fewer(LLAMA["num_hidden_layers"], layers))
    fields = DEEPSEEK | _fewer(DEEPSEEK["num_hidden_layers"], layers)
    if model == "D":
        return build(**fields)
    projector = {"input_dim": VISION["width"], "n_embed": fields["hidden_size"]}
    return build(vision_config=VISION, projector_config=projector, language_config=fields)


def _fewer(full: int, layers: int | None) -> dict[str, int]:
    return {"num_hidden_layers": min(full, layers or full)}


def make_checkpoint(model: str, layers: int | None, folder: Path) -> Path:
    """Write a model of seeded random weights; returns its folder."""
    torch.manual_seed(0)
    built = FAMILIES[model][1](config_of(model, layers)).to(torch.bfloat16)
    built.save_pretrained(folder / model)
    return folder / model


def ways_of(model: str, folder: Path) -> dict[str, Callable[[], Way]]:
    """Those that read that checkpoint; transformers has no class for V."""
    ours = FAMILIES[model][1]
    ways: dict[str, Callable[[], Way]] = {
        "engine": lambda: EngineWay(folder, model),
        "generate": lambda: GenerateWay(ours.from_pretrained(folder, dtype=torch.bfloat16)),
    }
    theirs = {"L": transformers.LlamaForCausalLM, "D": transformers.DeepseekV2ForCausalLM}.get(model)
    if theirs is not None:
        kinds = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        ways["transformers"] = lambda: GenerateWay(theirs.from_pretrained(folder, **kinds))
    return ways


def prompts_of(case: Case, round: int) -> list[list[int]]:
    """Different in every round, so that nothing is found again."""
    generator = torch.Generator().manual_seed(1000 * round + case.batch)
    return torch.randint(3, 30000, (case.batch, case.context), generator=generator).tolist()


def rates(model: str, ways: dict[str, Way], cases: tuple[Case, ...], rounds: int, limits: "Limits") -> Iterator[Rate]:
    """Each case in turns; the first turn of each warms up and does not count."""
    for case in cases:
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for round in range(rounds + 1):
            prompts = prompts_of(case, round)
            for name, way in ways.items():
                seconds = way.decode(prompts) if case.decodes else way.prefill(prompts)
                tokens = STEPS * case.batch if case.decodes else case.batch * case.context
                taken[name].append(tokens / seconds)
            limits.measure()
        yield Rate(model, case.name, {name: statistics.median(each[1:]) for name, each in taken.items()})


class Limits:
    """What the machine can do at all, measured again and again between the turns."""

    def __init__(self) -> None:
        self._data = torch.ones(READ // 4)
        self._sides = torch.randn(2048, 2048, dtype=torch.bfloat16), torch.randn(2048, 2048, dtype=torch.bfloat16)
        self._read: list[float] = []
        self._multiply: list[float] = []

    def measure(self) -> None:
        """One look at each limit."""
        start = time.perf_counter()
        self._data.sum()
        self._read.append(self._data.nbytes / (time.perf_counter() - start) / 1e9)
        start = time.perf_counter()
        torch.mm(*self._sides)
        self._multiply.append(2 * 2048**3 / (time.perf_counter() - start) / 1e12)

    def machine(self) -> Machine:
        """With the medians so far."""
        return Machine(
            platform.processor() or platform.machine(),
            torch.get_num_threads(),
            torch.__version__,
            transformers.__version__,
            statistics.median(self._read),
            statistics.median(self._multiply),
        )


def start_of(model: str, way: str, folder: Path, threads: int) -> Start:
    """Run this script again as a process that loads, reads 16 tokens and ends."""
    command = [sys.executable, __file__, "--start", model, way, str(folder), "--threads", str(threads)]
    begun = time.perf_counter()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Start(model, way, time.perf_counter() - begun, json.loads(said)["peak"] / 1e9, weights / 1e9)


def start(model: str, way: str, folder: Path) -> None:
    """The process of :func:`start_of`: load, draw one token, say how much memory that took at most."""
    ways_of(model, folder)[way]().prefill([list(range(3, 19))])
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}))


def report(found: list[Rate]) -> None:
    """A table of tokens per second; the ratio is the engine's to the best of the others."""
    names = list(dict.fromkeys(name for rate in found for name in rate.tokens_per_second))
    print(f"\n{'tokens/s':22}" + "".join(f"{name:>14}" for name in names) + f"{'ratio':>8}")
    for rate in found:
        own = rate.tokens_per_second
        cells = "".join(f"{own.get(name) or float('nan'):14.1f}" for name in names)
        best = max(value or 0.0 for name, value in own.items() if name != "engine")
        print(f"{rate.model + ' ' + rate.case:22}{cells}{(own['engine'] or 0.0) / best:8.2f}")


def commit() -> str:
    """Of the code that ran; empty where git does not say."""
    said = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return said.stdout.strip()


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that was asked for, printed as it comes."""
    limits, found, starts = Limits(), [], []
    cases = tuple(case for case in CASES if args.only in case.name)
    for model in args.models:
        checkpoint = make_checkpoint(model, args.layers, folder)
        if not args.no_start:
            starts += [start_of(model, way, checkpoint, args.threads) for way in ways_of(model, checkpoint)]
        ways = {name: make() for name, make in ways_of(model, checkpoint).items() if name in args.ways}
        for rate in rates(model, ways, cases, args.rounds, limits):
            print(rate.model, rate.case, {k: round(v or 0, 1) for k, v in rate.tokens_per_second.items()}, flush=True)
            found.append(rate)
    machine = limits.machine()
    report(found)
    for each in starts:
        print(f"{each.model} {each.way}: first token after {each.seconds:.1f} s, {each.peak_gb:.2f} GB at most")
    print(f"limits: read {machine.read:.1f} GB/s, bf16 {machine.multiply:.2f} TFLOP/s, {machine.threads} threads")
    parts = {"rates": found, "starts": starts}
    head = {"commit": commit(), "layers": args.layers, "machine": asdict(machine)}
    return head | {name: [asdict(each) for each in own] for name, own in parts.items()}


def main() -> None:
    """Parse, measure, print, and write the numbers if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["L", "D"], choices=[*FAMILIES])
    parser.add_argument("--layers", type=int, help="keep so many layers of each model; by default all")
    parser.add_argument("--rounds", type=int, default=3, help="turns each way gets; their median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--ways", nargs="+", default=["engine", "generate", "transformers"])
    parser.add_argument("--no-start", action="store_true", help="leave out the time and memory of loading")
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    parser.add_argument("--start", nargs=3, metavar=("MODEL", "WAY", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.start:
        start(args.start[0], args.start[1], Path(args.start[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args, Path(folder))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
