"""How fast the compiled kernels read memory, against torch's way to the same result and against a plain read.

    python benchmarks/kernels.py [--rounds 7] [--threads N] [--only linear] [--out kernels.json]

Shapes are those of a Llama of 1.1 billion parameters and of a small DeepSeek-V2. Each case goes through enough copies
of its data that no cache holds them; ours, torch's and the plain read take turns, and medians count. A GB is 10^9 bytes
of weights or pages, each counted once however often it is read. Prompts are bound by multiplying, not by reading.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.experts import grouped_experts
from modelwright.ops.paged import gathered_attention, gathered_latent_attention
from modelwright.ops.pages import Pages, quantise_rows
from modelwright.ops.weight_only import Int4Weight, Int8Weight, quantise_int4, quantise_int8

COLD = 256 * 2**20
"""Bytes of data a case goes through before it meets the same again."""
READ = 512 * 2**20
LLAMA = {"attention": (2048, 2048), "gate and up": (11264, 2048), "down": (2048, 5632), "head": (32000, 2048)}
JOINED = ((2048, 2048), (256, 2048), (256, 2048))
"""Queries, keys and values, which read the same rows."""
BF16 = torch.bfloat16
KINDS: dict[str, tuple[torch.dtype, Callable[[Tensor], Any]]] = {
    "bf16": (BF16, lambda weight: weight),
    "fp32": (torch.float32, lambda weight: weight),
    "int8": (BF16, quantise_int8),
    "int4": (BF16, quantise_int4),
}
STORED = {"bf16": (BF16, BF16), "int8": (torch.int8, BF16), "fp32": (torch.float32, torch.float32)}
"""How pages are stored, and the type of their queries."""
CONTEXTS = {
    "1 x 512": [512],
    "1 x 4096": [4096],
    "8 x 256 to 768": [256 + 512 * i // 7 for i in range(8)],
    "32 x 256 to 768": [256 + 512 * i // 31 for i in range(32)],
}


@dataclass(frozen=True)
class Case:
    """Two ways to one result on items of ``bytes`` each, of which ``make`` makes one."""

    name: str
    bytes: int
    make: Callable[[], Any]
    ours: Callable[[Any], Any]
    torch: Callable[[Any], Any]


@dataclass(frozen=True)
class Result:
    """A case's medians in GB/s; ``read`` is the plain read beside it."""

    name: str
    ours: float
    torch: float
    read: float


def copies_of(size: int) -> int:
    """Copies of ``size`` bytes that no cache holds."""
    return max(2, -(-COLD // size))


def stored_bytes(weight: Tensor | Int8Weight | Int4Weight) -> int:
    """Bytes of a weight with its scales."""
    if isinstance(weight, Tensor):
        return weight.nbytes
    offsets = 0 if isinstance(weight, Int8Weight) or weight.offsets is None else weight.offsets.nbytes
    return weight.steps.nbytes + weight.scales.nbytes + offsets


def linear_cases() -> Iterator[Case]:
    """Linear layers on 1 to 64 rows, in each type a weight may be stored in."""
    for rows in (1, 8, 32):
        yield joined_case(rows)
    for kind in KINDS:
        for layer in LLAMA if kind == "bf16" else ("down",):
            for rows in (1, 8, 16, 32, 64):
                yield linear_case(kind, layer, rows)


def linear_case(kind: str, layer: str, rows: int) -> Case:
    """A weight as it is stored, and as torch multiplies it."""
    (dtype, store), shape = KINDS[kind], LLAMA[layer]

    def make() -> tuple[Any, Tensor]:
        weight = torch.randn(shape, dtype=dtype)
        return store(weight), weight

    x = torch.randn(rows, shape[1], dtype=dtype)
    return Case(
        f"linear {kind} {layer}, {rows} rows",
        stored_bytes(store(torch.zeros(shape, dtype=dtype))),
        make,
        lambda pair: kernels.linear(x, pair[0]),
        lambda pair: F.linear(x, pair[1]),
    )


def joined_case(rows: int) -> Case:
    """Several weights in one call, small ones among them."""
    x = torch.randn(rows, JOINED[0][1], dtype=BF16)
    return Case(
        f"linear bf16 q, k and v, {rows} rows",
        sum(2 * out * inputs for out, inputs in JOINED),
        lambda: [torch.randn(shape, dtype=BF16) for shape in JOINED],
        lambda weights: kernels.linears(x, [(weight, None) for weight in weights]),
        lambda weights: [F.linear(x, weight) for weight in weights],
    )


def expert_cases() -> Iterator[Case]:
    """1 token and more, up to a prompt, that choose 6 of 32 experts each."""
    for kind, numbers in {"bf16": (1, 8, 32, 512), "int8": (1,), "int4": (1,)}.items():
        for tokens in numbers:
            yield expert_case(kind, tokens)


def expert_case(kind: str, tokens: int, experts: int = 32, width: int = 512, dim: int = 1024, top_k: int = 6) -> Case:
    """Only the chosen experts' weights count as read."""
    store = KINDS[kind][1]
    chosen = torch.rand(tokens, experts).argsort(dim=-1)[:, :top_k].contiguous()
    x, weights = torch.randn(tokens, dim, dtype=BF16), torch.rand(tokens, top_k)
    shapes = (experts, 2 * width, dim), (experts, dim, width)

    def make() -> list[tuple[Any, Tensor]]:
        return [(store(weight), weight) for weight in (torch.randn(shape, dtype=BF16) for shape in shapes)]

    return Case(
        f"experts {kind}, {tokens} tokens",
        sum(stored_bytes(store(torch.zeros(shape, dtype=BF16))) for shape in shapes) * len(chosen.unique()) // experts,
        make,
        lambda layer: kernels.experts(x, chosen, weights, layer[0][0], layer[1][0]),
        lambda layer: grouped_experts(x, chosen, weights, layer[0][1], layer[1][1], F.silu),
    )


def attention_cases() -> Iterator[Case]:
    """Decode over pages of 16 tokens, of heads and of latents, and the latents' projection on 1 to 64 tokens."""
    for kind in STORED:
        for name in CONTEXTS:
            yield grouped_case(name, kind)
            yield latent_case(name, kind)
    for tokens in (1, 8, 32, 64):
        yield from projection_cases(tokens)


def grouped_case(name: str, kind: str) -> Case:
    """4 key heads of 64 under 32 query heads."""
    contexts, (stored, dtype) = CONTEXTS[name], STORED[kind]
    tail = tables_of(contexts)
    shape = (int(tail[1].max()) + 1, 16, 4, 64)
    q = torch.randn(len(contexts), 32, 64, dtype=dtype)
    return Case(
        f"grouped {kind}, {name}",
        sum(contexts) * 2 * 4 * 64 * stored.itemsize,
        lambda: (pages_of(shape, kind), pages_of(shape, kind)),
        lambda pages: kernels.decode([q], [pages[0]], pages[1], *tail),
        lambda pages: gathered_attention(q, pages[0], pages[1], *tail),
    )


def latent_case(name: str, kind: str) -> Case:
    """16 heads in a latent space of 512, and 64 rotated."""
    contexts, (stored, dtype) = CONTEXTS[name], STORED[kind]
    tail = tables_of(contexts)
    shape = (int(tail[1].max()) + 1, 16, 576)

    def make() -> list[Pages]:
        whole = pages_of(shape, kind)
        return [Pages(part, whole.scales) for part in whole.rows.split([512, 64], dim=-1)]

    qs = [torch.randn(len(contexts), 16, width, dtype=dtype) for width in (512, 64)]
    return Case(
        f"latent {kind}, {name}",
        sum(contexts) * 576 * stored.itemsize,
        make,
        lambda pages: kernels.decode(qs, pages, pages[0], *tail),
        lambda pages: gathered_latent_attention(qs[0], qs[1], pages[0], pages[1], *tail),
    )


def projection_cases(tokens: int, heads: int = 16, rank: int = 512, nope: int = 128) -> Iterator[Case]:
    """Queries taken into the latent space, values out of it; each reads its half of ``kv_b``."""
    size = heads * nope * rank * BF16.itemsize

    def make() -> Tensor:
        return torch.randn(heads * 2 * nope, rank, dtype=BF16)

    def halves(kv_b: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = kv_b.unflatten(0, (heads, -1)).split(nope, dim=1)
        return keys, values

    q = torch.randn(1, tokens, heads, nope, dtype=BF16).transpose(1, 2)
    yield Case(
        f"latent in, {tokens} tokens",
        size,
        make,
        lambda kv_b: kernels.latent_in(q, kv_b),
        lambda kv_b: torch.einsum("bhtn,hnr->bhtr", q, halves(kv_b)[0]),
    )
    x = torch.randn(1, heads, tokens, rank, dtype=BF16)
    yield Case(
        f"latent out, {tokens} tokens",
        size,
        make,
        lambda kv_b: kernels.latent_to_values(x, kv_b, nope),
        lambda kv_b: halves(kv_b)[1] @ x[0].mT,
    )


def tables_of(contexts: Sequence[int]) -> tuple[Tensor, Tensor, float]:
    """Contexts, scattered tables and a scale."""
    needed = [-(-context // 16) for context in contexts]
    tables = torch.zeros(len(contexts), max(needed), dtype=torch.int32)
    for line, own in zip(tables, torch.randperm(sum(needed)).split(needed), strict=True):
        line[: len(own)] = own
    return torch.tensor(contexts, dtype=torch.int32), tables, 0.1


def pages_of(shape: tuple[int, ...], kind: str) -> Pages:
    """Random vectors in pages."""
    rows = torch.randn(shape)
    return Pages(*quantise_rows(rows)) if kind == "int8" else Pages(rows.to(STORED[kind][0]))


def rate(size: int, call: Callable[[Any], Any], data: Sequence[Any]) -> float:
    """GB/s of a call on each of ``data``."""
    start = time.perf_counter()
    for item in data:
        call(item)
    return size * len(data) / (time.perf_counter() - start) / 1e9


def measure(case: Case, rounds: int, plain: Tensor) -> Result:
    """Ours, torch's and the plain read in turns, after one call each."""
    taken: dict[str, list[float]] = {"ours": [], "torch": [], "read": []}
    data = [case.make() for _ in range(copies_of(case.bytes))]
    rate(case.bytes, case.ours, data[:1])
    rate(case.bytes, case.torch, data[:1])
    for _ in range(rounds):
        taken["ours"].append(rate(case.bytes, case.ours, data))
        taken["torch"].append(rate(case.bytes, case.torch, data))
        taken["read"].append(rate(plain.nbytes, Tensor.sum, [plain]))
    return Result(case.name, **{who: statistics.median(rates) for who, rates in taken.items()})


def main() -> None:
    """Time every case, print a line for each, and write them if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns each way gets; their median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    args = parser.parse_args()
    if not kernels.available():
        parser.exit(1, f"there are no kernels to time: {kernels.reason()}\n")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    plain, results = torch.ones(READ // 4), []
    print(f"{'GB/s':32}{'ours':>8}{'torch':>8}{'read':>8}{'ours/read':>11}")
    for cases in (linear_cases, expert_cases, attention_cases):
        for case in cases():
            if case.name.startswith(args.only):
                r = measure(case, args.rounds, plain)
                print(f"{r.name:32}{r.ours:8.1f}{r.torch:8.1f}{r.read:8.1f}{r.ours / r.read:11.2f}", flush=True)
                results.append(r)
    if args.out:
        machine = {"processor": platform.processor() or platform.machine(), "threads": args.threads}
        machine["torch"] = torch.__version__
        args.out.write_text(json.dumps({"machine": machine, "results": list(map(asdict, results))}, indent=1) + "\n")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
