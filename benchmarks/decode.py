"""Time per decoded token at a long context, ours against transformers' on the same weights, in one process.

    python benchmarks/decode.py [--context 4096] [--layers 2] [--threads N] [--out benchmarks/results/decode.json]

The attention is DeepSeek-V2-Lite's (hidden 2048, 16 heads, latent rank 512, rotated 64, 128 per head); there are few
layers, and the feed-forward and the vocabulary are small, so that attention is what is timed. Both models read one
checkpoint and the same prompt, each into its own cache; their logits are compared, and then they decode in turns.
Prefill and sampling are left out.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from modelwright import DeepseekV2Config, DeepseekV2ForCausalLM
from modelwright.hf.cache_names import of_cache

Model = Any
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest accepted difference of logits, as a share of their spread."""


@dataclass(frozen=True)
class Shape:
    """The benchmark's size; the defaults are DeepSeek-V2-Lite's attention."""

    hidden: int = 2048
    heads: int = 16
    rank: int = 512
    rope: int = 64
    nope: int = 128
    v_dim: int = 128
    feed_forward: int = 1024
    vocabulary: int = 512
    layers: int = 2
    context: int = 4096


@dataclass(frozen=True)
class Result:
    """One dtype's medians; times are milliseconds of one token, numbers are per cached token and layer."""

    dtype: str
    ours_ms: float
    transformers_ms: float
    ratio: float
    ours_cache_numbers: int
    transformers_cache_numbers: int
    worst_logit_difference: float


def main() -> None:
    """Time, print, and write the results beside a description of the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=4096, help="tokens in the caches before timing")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="turns each model gets; their median counts")
    parser.add_argument("--tokens", type=int, default=4, help="tokens decoded in a turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decode.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.disable_progress_bar()
    shape = Shape(layers=args.layers, context=args.context)
    results = run(shape, args.rounds, args.tokens, torch.device(args.device))
    print(table(shape, results))
    report = {
        "machine": machine(torch.device(args.device)),
        "shape": asdict(shape),
        "results": list(map(asdict, results)),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@torch.inference_mode()
def run(shape: Shape, rounds: int, tokens: int, device: torch.device) -> list[Result]:
    """Measure fp32 and bf16 on one set of random weights."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(shape, folder)
        for dtype in (torch.float32, torch.bfloat16):
            ours = DeepseekV2ForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
            theirs: Model = transformers.DeepseekV2ForCausalLM.from_pretrained(folder, dtype=dtype)
            results.append(compare(shape, ours, theirs.to(device), rounds, tokens))
    return results


def write_checkpoint(shape: Shape, folder: str) -> None:
    """Random weights in the official layout."""
    torch.manual_seed(0)
    config = DeepseekV2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        moe_intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        kv_lora_rank=shape.rank,
        q_lora_rank=None,
        qk_rope_head_dim=shape.rope,
        qk_nope_head_dim=shape.nope,
        v_head_dim=shape.v_dim,
        first_k_dense_replace=shape.layers,
        n_routed_experts=2,  # never used: every layer is dense
        n_shared_experts=1,
        num_experts_per_tok=1,
        max_position_embeddings=4 * shape.context,
        bos_token_id=0,
        eos_token_id=1,
    )
    DeepseekV2ForCausalLM(config).save_pretrained(folder)


def compare(shape: Shape, ours: Model, theirs: Model, rounds: int, tokens: int) -> Result:
    """Prefill both with the same tokens, check that they agree, and time them in turns."""
    device = ours.device
    prompt = torch.randint(2, shape.vocabulary, (1, shape.context), device=device)
    token = torch.randint(2, shape.vocabulary, (1, 1), device=device)
    caches = [prefill(model, prompt) for model in (ours, theirs)]
    logits = [step(model, token, cache) for model, cache in zip((ours, theirs), caches, strict=True)]
    difference = float((logits[0] - logits[1]).abs().max() / logits[1].float().std())
    if difference > TOLERANCE[ours.dtype]:
        raise SystemExit(f"the two models disagree by {difference:.2e} of the logits' spread: nothing to compare")
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for model, cache, taken in zip((ours, theirs), caches, times, strict=True):
            taken.append(seconds_a_token(lambda model=model, cache=cache: step(model, token, cache), tokens, device))
    mine, peer = (1e3 * statistics.median(taken) for taken in times)
    return Result(
        dtype=str(ours.dtype).removeprefix("torch."),
        ours_ms=round(mine, 3),
        transformers_ms=round(peer, 3),
        ratio=round(peer / mine, 2),
        ours_cache_numbers=cache_numbers(caches[0]),
        transformers_cache_numbers=cache_numbers(caches[1]),
        worst_logit_difference=difference,
    )


def prefill(model: Model, prompt: Tensor, chunk: int = 512) -> Any:
    """A cache that holds the prompt, read in chunks."""
    cache = transformers.DynamicCache()
    for start in range(0, prompt.shape[1], chunk):
        model(input_ids=prompt[:, start : start + chunk], **of_cache(cache), use_cache=True, logits_to_keep=1)
    return cache


def step(model: Model, token: Tensor, cache: Any) -> Tensor:
    """Logits ``[vocabulary]`` after one more token; the cache grows by it."""
    return model(input_ids=token, **of_cache(cache), use_cache=True, logits_to_keep=1).logits[0, -1].float()


def seconds_a_token(decode: Callable[[], Tensor], tokens: int, device: torch.device) -> float:
    """Wall clock of ``tokens`` steps, per step."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(tokens):
        decode()
    synchronise(device)
    return (time.perf_counter() - start) / tokens


def synchronise(device: torch.device) -> None:
    """Wait for work that a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cache_numbers(cache: Any) -> int:
    """Numbers that the cache holds for one token in one layer."""
    layer = cache.layers[0]
    tokens = layer.keys.shape[-2]
    return (layer.keys.numel() + layer.values.numel()) // tokens


def machine(device: torch.device) -> dict[str, str | int]:
    """What was measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"cpu": name, "threads": torch.get_num_threads(), **gpu, **versions}


def table(shape: Shape, results: list[Result]) -> str:
    """The results as a markdown table."""
    lines = [
        f"{shape.context} tokens of context, {shape.layers} layers, {shape.heads} heads, rank {shape.rank}",
        "",
        "| dtype | modelwright, ms a token | transformers, ms a token | ratio | cache numbers a token and layer |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.dtype} | {r.ours_ms:.2f} | {r.transformers_ms:.2f} | {r.ratio:.1f} x "
        f"| {r.ours_cache_numbers} against {r.transformers_cache_numbers} |"
        for r in results
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
