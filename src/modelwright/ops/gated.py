"""What a gated feed-forward (SwiGLU, arXiv:2002.05202) does between its projections, by torch and by the kernel."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.dispatch import only_numbers
from modelwright.ops.invariant import one_by_one, rows_are_invariant
from modelwright.ops.products import are_trained

Activation = Callable[[Tensor], Tensor]
"""``F.silu`` itself is what the kernels know; any other function, and any module, is called."""


def gated_product(gate: Tensor, up: Tensor, act: Activation) -> Tensor:
    """``act(gate) * up``, both ``[..., width]``."""
    known = act is F.silu
    if known and only_numbers(gate, up) and _fits(gate, up):
        return kernels.silu_product(gate, up)
    if rows_are_invariant():
        rows = (part.reshape(-1, part.shape[-1]) for part in (gate, up))
        return one_by_one(lambda a, b: act(a) * b, *rows).view(up.shape)
    if known and are_trained(gate, up) and _fits(gate, up):
        return _Product.apply(gate, up)  # pyright: ignore[reportReturnType]
    return act(gate) * up


def _fits(gate: Tensor, up: Tensor) -> bool:
    """Whether the kernel takes these, of which it is given pointers."""
    alike = gate.dtype == up.dtype and gate.shape == up.shape and gate.is_contiguous()
    return alike and kernels.serves_rows(gate, up)


def gated_halves(x: Tensor, act: Activation) -> Tensor:
    """``act(gate) * up`` of rows that hold both, ``[rows, 2 * width]`` -> ``[rows, width]``."""
    gate, up = x.chunk(2, dim=-1)
    known = act is F.silu and x.dim() == 2 and x.is_contiguous() and not rows_are_invariant()
    if known and are_trained(x) and kernels.serves_rows(x):
        return _Halves.apply(x)  # pyright: ignore[reportReturnType]
    return act(gate) * up


class _Product(torch.autograd.Function):
    """With gradients by the kernel; where those are to have gradients, by torch."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return kernels.silu_product(gate, up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(gradient, gate, up)
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        kernels.silu_product_back(gradient.contiguous(), gate, up, of_gate, of_up)
        return of_gate, of_up


class _Halves(torch.autograd.Function):
    """The same for both side by side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return kernels.silu_product(*x.chunk(2, dim=-1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        if torch.is_grad_enabled():
            return torch.cat(_differentiable(gradient, gate, up), dim=-1)
        found = torch.empty_like(x)
        kernels.silu_product_back(gradient.contiguous(), gate, up, *found.chunk(2, dim=-1))
        return found


def _differentiable(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    share = gate.sigmoid()
    return gradient * up * share * (1 + gate * (1 - share)), gradient * gate * share
