"""Linear layers and experts by the compiled kernels where those are faster, else by torch; the rule that says where.

Few rows are bound by reading the weight, which the kernels do once and at the memory's speed; many by multiplying,
which torch does as fast or faster, but for experts, where torch also sorts and gathers. Leaves out the kernels
(``ops/backends/cpu/``) and who calls this instead of torch (``engine/prepare.py``).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends.cpu import Unit
from modelwright.ops.experts import grouped_experts

Layer = tuple[Tensor, Tensor | None]
"""A weight ``[out, in]`` and a bias ``[out]`` or None."""

_FEW = {Unit.STREAMS: 8, Unit.DOTS: 64, Unit.TILES: 64}
"""Up to so many rows of bf16 a layer's weight is read and multiplied faster than by torch (``benchmarks/kernels.py``).

Measured without a matrix unit; what stands for ``TILES`` is an estimate.
"""
_FEW_OF_FP32 = 32
_FEW_FOR_AN_EXPERT = 12
"""The same for the rows that experts get on average, without dot products of bf16; with them no number is too large."""
_FEW_FOR_STORED = (8, 512)
"""The same for weights in int8 and int4, without dot products of bf16 and with them."""


def prefers_kernel(rows: int, dtype: torch.dtype) -> bool:
    """The rule for layers: whether so many rows are few."""
    if dtype == torch.bfloat16:
        return rows <= _FEW[kernels.unit()]
    return dtype == torch.float32 and rows <= _FEW_OF_FP32


def prefers_expert_kernel(choices: int, experts: int, dtype: torch.dtype) -> bool:
    """The rule for experts: whether ``choices`` in all leave few for each, or the kernel is faster anyway."""
    return _multiplies_blocks(dtype) or choices <= experts * _FEW_FOR_AN_EXPERT


def prefers_stored_kernel(rows: int, dtype: torch.dtype) -> bool:
    """The rule for weights in int8 and int4, which torch multiplies after it has made a wide copy of the whole."""
    return 0 < rows <= _FEW_FOR_STORED[_multiplies_blocks(dtype)]


def _multiplies_blocks(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and kernels.unit() != Unit.STREAMS


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: x ``[..., in]``, weight ``[out, in]`` -> ``[..., out]``."""
    return linears(x, [(weight, bias)])[0]


def linears(x: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """``F.linear`` of each layer on the same ``x``."""
    served = kernels.is_bare(x) and kernels.serves_linear(x, *(weight for weight, _ in layers))
    if served and prefers_kernel(x.numel() // x.shape[-1], x.dtype):
        return kernels.linears(x, layers)
    return [F.linear(x, weight, bias) for weight, bias in layers]


def silu_experts(x: Tensor, chosen: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """:func:`modelwright.ops.experts.grouped_experts` with a gate and SiLU."""
    served = kernels.is_bare(x) and kernels.serves_experts(x, w_in, w_out)
    if served and prefers_expert_kernel(chosen.numel(), w_in.shape[0], x.dtype):
        return kernels.experts(x, chosen, weights, w_in, w_out)
    return grouped_experts(x, chosen, weights, w_in, w_out, F.silu)
