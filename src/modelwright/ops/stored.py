"""Products with weights stored in int8 or int4: few rows by the compiled kernel, many by torch with a wide copy.

Leaves out how weights are rounded (``weight_only.py``) and rows with them (``dynamic_int8.py``).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends.cpu import Unit
from modelwright.ops.backends.cpu.thresholds import (
    NARROW_STORED_LINEAR_ROWS,
    STORED_EXPERT_TOKENS,
    STORED_LINEAR_ROWS,
    STORED_LINEAR_ROWS_FP32,
)
from modelwright.ops.dispatch import numbers_are_known, only_numbers
from modelwright.ops.dynamic_int8 import dynamic_int8_linear
from modelwright.ops.experts import grouped_experts
from modelwright.ops.gated import Activation
from modelwright.ops.invariant import one_by_one, rows_are_invariant
from modelwright.ops.linear import linear
from modelwright.ops.products import plain_linear
from modelwright.ops.weight_only import Int4Weight, Int8Weight, dequantise

Stored = Int8Weight | Int4Weight
Beside = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(rows, base, counts) -> base and more``, what is added to the product of sorted rows with a stack."""


def prefers_stored_kernel(rows: int, dtype: torch.dtype) -> bool:
    """The rule: beyond it a wide copy of the whole weight is made first."""
    if not kernels.has_wide_registers():
        return 0 < rows <= NARROW_STORED_LINEAR_ROWS[dtype]
    return 0 < rows <= (STORED_LINEAR_ROWS[kernels.unit()] if dtype == torch.bfloat16 else STORED_LINEAR_ROWS_FP32)


def stored_linear(x: Tensor, weight: Stored, bias: Tensor | None = None, dynamic: bool = False) -> Tensor:
    """``x @ weight.T + bias``, ``[..., in]`` to ``[..., out]``.

    ``dynamic`` rounds the rows of ``x`` to int8 too, where the weight is int8. Gradients reach ``x`` and ``bias``, as
    if nothing had been rounded but the weight.
    """
    wanted = x.requires_grad or (bias is not None and bias.requires_grad)
    if wanted and torch.is_grad_enabled() and numbers_are_known(x):
        return _FrozenProduct.apply(x, bias, weight, dynamic)  # pyright: ignore[reportReturnType]
    served = only_numbers(x, weight.steps, bias) and kernels.serves_linear(x, weight)
    return _product(x, weight, bias, dynamic, served)


class _FrozenProduct(torch.autograd.Function):
    """:func:`stored_linear` of which nothing wide is kept: the backward pass makes the wide copy again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: Stored, dynamic: bool) -> Tensor:
        ctx.weight, ctx.type = weight, x.dtype
        return _product(x, weight, bias, dynamic, served=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        of_x, of_bias, *_ = ctx.needs_input_grad
        back = plain_linear(gradient, dequantise(ctx.weight, gradient.dtype).t()).to(ctx.type) if of_x else None
        return back, gradient.flatten(0, -2).sum(0) if of_bias else None, None, None


def _product(x: Tensor, weight: Stored, bias: Tensor | None, dynamic: bool, served: bool) -> Tensor:
    if dynamic and isinstance(weight, Int8Weight):
        return dynamic_int8_linear(x, weight, bias)
    if rows_are_invariant():
        return _invariant_linear(x, weight, bias, served)
    if served and prefers_stored_kernel(x.numel() // x.shape[-1], x.dtype):
        return kernels.linear(x, weight, bias)
    multiply = linear if served else plain_linear
    return multiply(x, dequantise(weight, x.dtype), None if bias is None else bias.to(x.dtype))


def _invariant_linear(x: Tensor, weight: Stored, bias: Tensor | None, served: bool) -> Tensor:
    """The same, each row as it is alone."""
    if served:
        return kernels.linear(x, weight, bias, Unit.STREAMS)
    wide = dequantise(weight, x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    out = one_by_one(lambda row: plain_linear(row, wide, None if bias is None else bias.to(x.dtype)), rows)
    return out.view(*x.shape[:-1], out.shape[-1])


def stored_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    w_in: Stored,
    w_out: Stored,
    act: Activation,
    gated: bool = True,
    dropout: float = 0.0,
    dynamic: bool = False,
    beside: tuple[Beside | None, Beside | None] = (None, None),
) -> Tensor:
    """:func:`modelwright.ops.experts.experts` with stored stacks, and what is ``beside`` the one and the other."""
    alone = rows_are_invariant()
    few = alone or 0 < len(x) <= STORED_EXPERT_TOKENS
    known = gated and act is F.silu and not dropout and not dynamic and few and not any(beside)
    if known and only_numbers(x, chosen, weights, w_in.steps) and kernels.serves_experts(x, w_in, w_out):
        return kernels.experts(x, chosen, weights, w_in, w_out, Unit.STREAMS if alone else None)

    def multiply(rows: Tensor, steps: Tensor, counts: Tensor) -> Tensor:
        stored, more = (w_in, beside[0]) if steps is w_in.steps else (w_out, beside[1])
        out = stored_segments(rows, stored, counts, dynamic)
        return out if more is None else more(rows, out, counts)

    def grouped(x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return grouped_experts(x, chosen, weights, w_in.steps, w_out.steps, act, gated, dropout, multiply)

    return one_by_one(grouped, x, chosen, weights) if alone else grouped(x, chosen, weights)


def stored_segments(x: Tensor, weight: Stored, counts: Tensor, dynamic: bool = False) -> Tensor:
    """``x[rows of e] @ weight[e].T`` for consecutive runs of rows; an expert without rows is not read.

    x ``[rows, in]``, weight ``[experts, out, in]``, counts ``[experts]`` (how long each run is) -> ``[rows, out]``.
    """
    sizes = counts.tolist()
    runs = [
        stored_linear(run, expert_of(weight, e), dynamic=dynamic) for e, run in enumerate(x.split(sizes)) if sizes[e]
    ]
    return torch.cat(runs) if runs else x.new_empty(0, weight.steps.shape[1])


def expert_of(weight: Stored, expert: int) -> Stored:
    """One expert's weight ``[out, in]`` out of a stack of them."""
    if isinstance(weight, Int8Weight):
        return Int8Weight(weight.steps[expert], weight.scales[expert])
    offsets = None if weight.offsets is None else weight.offsets[expert]
    return Int4Weight(weight.steps[expert], weight.scales[expert], offsets)


def inputs_of(weight: Stored) -> int:
    """The width that a stored weight takes."""
    return weight.steps.shape[-1] * (1 if isinstance(weight, Int8Weight) else 2)
