"""Linear layers by the compiled kernel where that is faster, else by torch; the rule that says where.

Few rows are bound by reading the weight, which the kernel does once and at the memory's speed; many by multiplying,
which torch does as fast or faster. Leaves out the kernel (``backends/cpu``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends.cpu import Unit
from modelwright.ops.backends.cpu.thresholds import (
    LACKED_LINEAR_ROWS,
    LINEAR_ROWS_BF16,
    LINEAR_ROWS_FP32,
    NARROW_LINEAR_ROWS_FP32,
)
from modelwright.ops.dispatch import only_numbers
from modelwright.ops.invariant import one_by_one, rows_are_invariant
from modelwright.ops.products import plain_linear

Layer = tuple[Tensor, Tensor | None]
"""A weight ``[out, in]`` and a bias ``[out]`` or None."""


def prefers_kernel(rows: int, dtype: torch.dtype) -> bool:
    """The rule: whether so many rows are few."""
    if dtype == torch.bfloat16:
        return rows <= (LACKED_LINEAR_ROWS if kernels.torch_lacks(dtype) else LINEAR_ROWS_BF16[kernels.unit()])
    if dtype != torch.float32:
        return False
    return rows <= LINEAR_ROWS_FP32 if kernels.has_wide_registers() else rows in NARROW_LINEAR_ROWS_FP32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: x ``[..., in]``, weight ``[out, in]`` -> ``[..., out]``."""
    if rows_are_invariant():
        return _invariant(x, [(weight, bias)])[0]
    if only_numbers(x, weight, bias) and _kernel_serves(x, weight):
        return kernels.linears(x, [(weight, bias)])[0]
    return plain_linear(x, weight, bias)


def linears(x: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """:func:`linear` of each layer on the same ``x``, which the kernel reads once."""
    weights = [weight for weight, _ in layers]
    if rows_are_invariant():
        return _invariant(x, layers)
    if only_numbers(x, *weights, *(bias for _, bias in layers)) and _kernel_serves(x, *weights):
        return kernels.linears(x, layers)
    return [plain_linear(x, weight, bias) for weight, bias in layers]


def _invariant(x: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """The same, each row as it is alone: streamed past the weights, however many there are."""
    weights = [weight for weight, _ in layers]
    if only_numbers(x, *weights, *(bias for _, bias in layers)) and kernels.serves_linear(x, *weights):
        return kernels.linears(x, layers, Unit.STREAMS)
    rows = x.reshape(-1, x.shape[-1])
    outs = [one_by_one(lambda row, w=w, b=b: plain_linear(row, w, b), rows) for w, b in layers]
    return [out.view(*x.shape[:-1], out.shape[-1]) for out in outs]


def _kernel_serves(x: Tensor, *weights: Tensor) -> bool:
    return kernels.serves_linear(x, *weights) and prefers_kernel(x.numel() // x.shape[-1], x.dtype)
