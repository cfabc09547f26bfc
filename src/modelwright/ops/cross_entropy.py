"""The summed loss of a head's logits, in fp32, without ever holding the logits of all tokens at once.

``x`` is ``[tokens, dim]``, ``weight`` ``[vocabulary, dim]``, ``targets`` ``[tokens]``: what each token is to foresee,
with ``IGNORED`` where nothing counts.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.products import multiply

IGNORED = -100
"""The target of what is not learned."""

LOGITS_AT_ONCE = {"cpu": 2**22, "cuda": 2**27}
"""How many logits are held at once unless a caller says otherwise: on a CPU those that stay in its caches."""


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum over all tokens of ``logits`` ``[..., vocabulary]`` that count, taken in fp32: a scalar."""
    flat = logits.float().flatten(0, -2)
    return F.cross_entropy(flat, targets.flatten().to(flat.device), ignore_index=IGNORED, reduction="sum")


def rows_at_once(vocabulary: int, device: torch.device) -> int:
    """Tokens of a chunk where nobody says it."""
    return max(LOGITS_AT_ONCE.get(device.type, LOGITS_AT_ONCE["cuda"]) // vocabulary, 16)


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """:func:`summed_cross_entropy` of ``x @ weight.T``, ``chunk`` tokens at a time.

    The gradients of a chunk's logits are known as soon as its loss is, so those of ``x`` and ``weight`` are taken in
    the forward pass already, and no logits are kept or computed twice. Backward runs once. Where torch has no
    products of the type (``products.py``), logits and their gradients are fp32.
    """
    return _LinearCrossEntropy.apply(x, weight, targets, chunk)


def called_cross_entropy(head: Callable[[Tensor], Tensor], x: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """:func:`linear_cross_entropy` for any head: its logits are computed a second time in the backward pass."""
    total = x.new_zeros((), dtype=torch.float32)
    for part, own in zip(x.split(chunk), targets.split(chunk), strict=True):
        total = total + checkpoint(_loss_of, head, part, own, use_reentrant=False)
    return total


def _loss_of(head: Callable[[Tensor], Tensor], x: Tensor, targets: Tensor) -> Tensor:
    return summed_cross_entropy(head(x), targets)


class _LinearCrossEntropy(torch.autograd.Function):
    """See :func:`linear_cross_entropy`; every target counts here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        of_x = torch.empty_like(x) if wants_x else None
        of_weight = _Sum(weight) if wants_weight else None
        wide = weight.is_cpu and kernels.torch_lacks(weight.dtype)
        compute = torch.float32 if wide else weight.dtype  # in fp32 nothing but the results is rounded
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, len(x), chunk):
                part, own = x[start : start + chunk].to(compute), targets[start : start + chunk, None]
                logits = multiply(part, weight.t()) if wide else F.linear(part, weight).float()
                most = logits.amax(dim=1, keepdim=True)
                meant = logits.gather(1, own)
                shares = logits.sub_(most).exp_()
                sums = shares.sum(dim=1, keepdim=True)
                total += (sums.log() + most - meant).sum()
                if of_x is None and of_weight is None:
                    continue
                gradient = shares.div_(sums).scatter_add_(1, own, shares.new_full(own.shape, -1.0)).to(compute)
                if of_x is not None and wide:
                    of_x[start : start + chunk] = multiply(gradient, weight, dtype=x.dtype)
                elif of_x is not None:
                    torch.mm(gradient, weight, out=of_x[start : start + chunk])
                if of_weight is not None:
                    of_weight.add(gradient, part)
        ctx.save_for_backward(of_x, None if of_weight is None else of_weight.total())
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradients[0]
        return *(part if part is None else part.mul_(factor.to(part.dtype)) for part in ctx.saved_tensors), None, None


class _Sum:
    """The weight's gradient, summed over chunks in fp32 at least."""

    def __init__(self, weight: Tensor):
        self.weight, self.sum = weight, None

    def add(self, gradient: Tensor, x: Tensor) -> None:
        if self.sum is None:
            self.sum = gradient.T @ x
        elif self.sum.dtype == gradient.dtype == torch.float32:
            self.sum.addmm_(gradient.T, x)
        else:
            self.sum = self.sum.float().add_(gradient.T @ x)

    def total(self) -> Tensor:
        return torch.zeros_like(self.weight) if self.sum is None else self.sum.to(self.weight.dtype)
