"""Tokens per second while a picture is completed: ours, transformers' `generate` and onnxruntime, in turns.

    python benchmarks/imagegpt.py [--tokens 1024] [--batches 1 16] [--rounds 3 1] [--threads N] [--no-onnx]

The model has ImageGPT-small's shape (24 layers, 512 wide, 8 heads) and random weights; each contestant continues the
start token by 1024 sampled colours, preparation of weights and caches included. Beside them stands the limit: as many
tokens as the machine can read the weights and the mean cache for, at the speed at which torch sums a large tensor.
onnxruntime runs what `modelwright export onnx` writes, in fp32, where the extra `onnx` is installed.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from modelwright import ImageGPTConfig, ImageGPTForCausalImageModeling
from modelwright.engine.complete import complete

Contestant = Callable[[Tensor, int], Any]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2}
"""Largest accepted difference of logits, as a share of their spread; 24 layers of bfloat16 leave some 0.06."""


@dataclass(frozen=True)
class Result:
    """Medians for one type and batch, in tokens a second over all rows; None where a contestant does not take part."""

    dtype: str
    batch: int
    rounds: int
    ours: float
    ours_generate: float
    transformers: float
    onnxruntime: float | None
    limit: float

    @property
    def ratio(self) -> float:
        """How many times as fast as transformers ours is."""
        return round(self.ours / self.transformers, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument(
        "--rounds", type=int, nargs="+", default=[3, 1], help="turns of each contestant, a number a batch"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-onnx", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "imagegpt.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = ImageGPTConfig(n_layer=args.layers, n_positions=max(1024, args.tokens))
    turns = list(zip(args.batches, args.rounds, strict=True))
    results = []
    print(head(config, args.tokens))
    for result in run(config, args.tokens, turns, args.dtypes, with_onnx=not args.no_onnx and has_onnx()):
        print(row(result), flush=True)
        results.append(result)
    report = {
        "machine": machine(),
        "tokens": args.tokens,
        "layers": args.layers,
        "results": [asdict(result) | {"ratio": result.ratio} for result in results],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def has_onnx() -> bool:
    """Whether the extra is installed."""
    return all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def run(
    config: ImageGPTConfig, tokens: int, turns: list[tuple[int, int]], dtypes: list[str], with_onnx: bool
) -> Iterator[Result]:
    """Measure every type and (batch, rounds) on one set of random weights."""
    torch.manual_seed(0)
    ours = ImageGPTForCausalImageModeling(config).eval()
    theirs = transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**config.to_dict())).eval()
    theirs.load_state_dict(ours.state_dict())
    speed = read_speed()
    with exported(ours) if with_onnx else no_decoder() as onnx:
        for name in dtypes:
            dtype = getattr(torch, name)
            ours, theirs = ours.to(dtype), theirs.to(dtype)
            check_agreement(ours, theirs)
            for batch, rounds in turns:
                field = contestants(ours, theirs, onnx if dtype == torch.float32 else None)
                medians = measure(field, start(config, batch), tokens, rounds)
                limit = batch * speed / bytes_a_step(ours, batch, tokens)
                yield Result(
                    dtype=name,
                    batch=batch,
                    rounds=rounds,
                    ours=medians["ours"],
                    ours_generate=medians["ours_generate"],
                    transformers=medians["transformers"],
                    onnxruntime=medians.get("onnxruntime"),
                    limit=round(limit, 1),
                )


@contextmanager
def exported(model: ImageGPTForCausalImageModeling) -> Iterator[Any]:
    """A decoder of onnxruntime on the model's weights, with as many threads as torch has."""
    from modelwright.export.onnx import export_onnx
    from modelwright.export.runtime import OnnxDecoder

    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, Path(folder) / "onnx", draws=2)
        yield OnnxDecoder(Path(folder) / "onnx", threads=torch.get_num_threads())


@contextmanager
def no_decoder() -> Iterator[None]:
    yield None


def start(config: ImageGPTConfig, batch: int) -> Tensor:
    """The start token of ``batch`` pictures."""
    return torch.full((batch, 1), config.start_token_id)


def contestants(ours: Any, theirs: Any, onnx: Any) -> dict[str, Contestant]:
    """Who samples ``tokens`` more colours from all of them at temperature 1."""

    def by_generate(model: Any) -> Contestant:
        plan = {"do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}
        return lambda ids, tokens: model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **plan
        )

    field: dict[str, Contestant] = {
        "ours": lambda ids, tokens: complete(ours, ids, tokens),
        "ours_generate": by_generate(ours),
        "transformers": by_generate(theirs),
    }
    if onnx is not None:
        field["onnxruntime"] = lambda ids, tokens: onnx.generate(ids.numpy(), tokens, temperature=1.0, seed=0)
    return field


def measure(field: dict[str, Contestant], ids: Tensor, tokens: int, rounds: int) -> dict[str, float]:
    """Median tokens a second of each contestant, which take turns; each first makes two tokens unmeasured."""
    times: dict[str, list[float]] = {name: [] for name in field}
    for contestant in field.values():
        contestant(ids, 2)
    for _ in range(rounds):
        for name, contestant in field.items():
            began = time.perf_counter()
            made = contestant(ids, tokens)
            times[name].append(time.perf_counter() - began)
            if tuple(made.shape) != (len(ids), 1 + tokens):
                raise SystemExit(f"{name} made {tuple(made.shape)} tokens and not {(len(ids), 1 + tokens)}")
    return {name: round(len(ids) * tokens / statistics.median(taken), 1) for name, taken in times.items()}


@torch.inference_mode()
def check_agreement(ours: Any, theirs: Any) -> None:
    """Stop where the two models' logits differ: there would be nothing to compare."""
    ids = torch.randint(0, ours.config.start_token_id, (1, min(64, ours.config.n_positions)))
    found, wanted = ours(ids).logits.float(), theirs(ids).logits.float()
    difference = float((found - wanted).abs().max() / wanted.std())
    if difference > TOLERANCE[ours.dtype]:
        raise SystemExit(f"the two models disagree by {difference:.2e} of the logits' spread: nothing to compare")


def read_speed(floats: int = 2**26) -> float:
    """Bytes a second at which torch sums a tensor that no cache holds: the best of ten."""
    tensor = torch.ones(floats)
    best = min(seconds(tensor.sum) for _ in range(10))
    return tensor.nbytes / best


def seconds(action: Callable[[], object]) -> float:
    """Wall clock of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def bytes_a_step(model: Any, batch: int, tokens: int) -> int:
    """What a step must read: the weights but for the embeddings, and each row's cache when it is half full."""
    config = model.config
    embeddings = (config.vocab_size + config.n_positions) * config.n_embd
    weights = sum(parameter.numel() for parameter in model.parameters()) - embeddings
    cached = batch * (tokens // 2) * 2 * config.n_embd * config.n_layer
    return (weights + cached) * model.dtype.itemsize


def machine() -> dict[str, str | int]:
    """What was measured on."""
    name, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"cpu": name, "threads": torch.get_num_threads(), **versions, "transformers": transformers.__version__}


def head(config: ImageGPTConfig, tokens: int) -> str:
    """What is measured, and the head of a markdown table."""
    return "\n".join(
        [
            f"tokens a second; {tokens} sampled, {config.n_layer} layers, {config.n_embd} wide, {config.n_head} heads",
            "",
            "| dtype | batch | modelwright | its generate | transformers | ratio | onnxruntime | limit of reading |",
            "|---|---|---|---|---|---|---|---|",
        ]
    )


def row(result: Result) -> str:
    """A row of the table."""
    onnx = "-" if result.onnxruntime is None else f"{result.onnxruntime:.1f}"
    speeds = f"{result.ours:.1f} | {result.ours_generate:.1f} | {result.transformers:.1f} | {result.ratio:.2f} x"
    return f"| {result.dtype} | {result.batch} | {speeds} | {onnx} | {result.limit:.1f} |"


if __name__ == "__main__":
    main()
