"""Linear layers and experts by the compiled kernels where those are faster, else by torch; the rule that says where.

Few rows are bound by reading the weight, which the kernels do at the memory's speed; many by multiplying, which torch
does faster. Leaves out the kernels (``ops/kernels/``) and who calls this instead of torch (``engine/prepare.py``).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.ops import kernels
from modelwright.ops.experts import grouped_experts

Layer = tuple[Tensor, Tensor | None]
"""A weight ``[out, in]`` and a bias ``[out]`` or None."""

_FEW = {torch.bfloat16: 8, torch.float32: 32}
"""Up to so many rows a layer's weight is read faster than torch multiplies it (see ``benchmarks/kernels.py``)."""
_FEW_FOR_AN_EXPERT = 12
"""The same for the rows that experts get on average, where torch also sorts and gathers."""


def prefers_kernel(rows: int, dtype: torch.dtype) -> bool:
    """The rule for layers: whether so many rows are few."""
    return rows <= _FEW.get(dtype, 0)


def prefers_expert_kernel(choices: int, experts: int) -> bool:
    """The rule for experts: whether ``choices`` in all leave few for each."""
    return choices <= experts * _FEW_FOR_AN_EXPERT


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: x ``[..., in]``, weight ``[out, in]`` -> ``[..., out]``."""
    return linears(x, [(weight, bias)])[0]


def linears(x: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """``F.linear`` of each layer on the same ``x``."""
    few = kernels.is_bare(x) and prefers_kernel(x.numel() // x.shape[-1], x.dtype)
    if few and kernels.serves_linear(x, *(weight for weight, _ in layers)):
        return kernels.linears(x, layers)
    return [F.linear(x, weight, bias) for weight, bias in layers]


def silu_experts(x: Tensor, chosen: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """:func:`modelwright.ops.experts.grouped_experts` with a gate and SiLU."""
    few = kernels.is_bare(x) and prefers_expert_kernel(chosen.numel(), w_in.shape[0])
    if few and kernels.serves_experts(x, w_in, w_out):
        return kernels.experts(x, chosen, weights, w_in, w_out)
    return grouped_experts(x, chosen, weights, w_in, w_out, F.silu)
