"""Weight-only linear layers in int8 and int4: our kernels beside torchao's tensors, by time and by accuracy.

    pip install torchao && python -m benchmarks.beside_torchao [--rows 1 8 32] [--rounds 7] [--layers 6] [--threads 1]

The shapes are those of model L in `benchmarks/engine_cases.py`, in bf16, with as many matrices of each as outgrow the
caches; contestants take turns, and the shortest of the rounds is shown, in microseconds a matrix. torchao runs eagerly,
as the engine would call it: `Int8WeightOnlyConfig`, and `PrototypeInt4WeightOnlyConfig`, its only int4 for CPUs. In
brackets stands the norm of the difference from the product with the unrounded weight, as a share of that product's.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchao.prototype.quantization.int4 import inference_workflow  # pyright: ignore[reportMissingImports]
from torchao.quantization import Int8WeightOnlyConfig, quantize_  # pyright: ignore[reportMissingImports]

from benchmarks.engine_cases import LLAMA
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.weight_only import quantise_int4, quantise_int8

GROUP = 64
HIDDEN, INNER = LLAMA["hidden_size"], LLAMA["intermediate_size"]
SHAPES = ((HIDDEN, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))
"""Rows and inputs of the matrices."""
Layers = list[Callable[[Tensor], Tensor]]


def contestants(weights: list[Tensor]) -> dict[str, Layers]:
    """The layers of each, over the same weights ``[out, in]``."""
    int8, int4 = [quantise_int8(weight) for weight in weights], [quantise_int4(weight, GROUP) for weight in weights]
    return {
        "bf16": [lambda x, w=w: kernels.linear(x, w) for w in weights],
        "int8 ours": [lambda x, w=w: kernels.linear(x, w) for w in int8],
        "int8 torchao": theirs(weights, Int8WeightOnlyConfig()),
        "int4 ours": [lambda x, w=w: kernels.linear(x, w) for w in int4],
        "int4 torchao": theirs(weights, inference_workflow.PrototypeInt4WeightOnlyConfig(group_size=GROUP)),
    }


def theirs(weights: list[Tensor], config: object) -> Layers:
    """torchao's layers."""
    layers: Layers = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
        wrapped = nn.Sequential(layer)
        quantize_(wrapped, config)
        layers.append(wrapped)
    return layers


def measure(field: dict[str, Layers], x: Tensor, rounds: int) -> dict[str, float]:
    """Microseconds a layer of each contestant."""
    times: dict[str, list[float]] = {name: [] for name in field}
    for layers in field.values():
        layers[0](x)
    for _ in range(rounds):
        for name, layers in field.items():
            began = time.perf_counter()
            for layer in layers:
                layer(x)
            times[name].append((time.perf_counter() - began) / len(layers) * 1e6)
    return {name: min(taken) for name, taken in times.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=6, help="matrices of each shape")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    for out, width in SHAPES:
        weights = [torch.randn(out, width).mul_(0.02).bfloat16() for _ in range(args.layers)]
        field = contestants(weights)
        for rows in args.rows:
            x = torch.randn(rows, width).bfloat16()
            exact = x.float() @ weights[0].float().T
            errors = {
                name: float((layers[0](x).float() - exact).norm() / exact.norm()) for name, layers in field.items()
            }
            times = measure(field, x, args.rounds)
            cells = " | ".join(f"{times[name]:.0f} ({errors[name]:.4f})" for name in field)
            if rows == args.rows[0]:
                print(f"\n| {out} x {width}, rows | " + " | ".join(field) + " |")
                print("|---" * (1 + len(field)) + "|")
            print(f"| {rows} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
