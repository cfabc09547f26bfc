"""The root-mean-square norm (arXiv:1910.07467) in either of two orders, by torch and by the compiled kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.dispatch import only_numbers
from modelwright.ops.invariant import one_by_one, rows_are_invariant


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, fused: bool = False, compute: torch.dtype = torch.float32
) -> Tensor:
    """``weight * x / rms(x)`` over the last dimension: x ``[..., dim]``, weight ``[dim]`` -> ``[..., dim]``.

    Args:
        fused: round the result alone; otherwise the quotient is rounded to the type of ``x`` before it is weighed.
        compute: the type in which the quotient is taken.
    """
    served = compute == torch.float32 and weight.dtype == x.dtype and only_numbers(x, weight)
    if served and kernels.serves_rows(x, weight):
        return kernels.rms_norm(x, weight, eps, fused)  # row by row
    if rows_are_invariant():
        rows = x.reshape(-1, x.shape[-1])
        return one_by_one(lambda row: reference_rms_norm(row, weight, eps, fused, compute), rows).view(x.shape)
    return reference_rms_norm(x, weight, eps, fused, compute)


def reference_rms_norm(
    x: Tensor, weight: Tensor, eps: float, fused: bool = False, compute: torch.dtype = torch.float32
) -> Tensor:
    """:func:`rms_norm` by torch. The documentation of the kernel."""
    wide = x.to(compute)
    if fused:
        return F.rms_norm(wide, weight.shape, weight.to(compute), eps).to(x.dtype)
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (weight * normed.to(x.dtype)).to(x.dtype)
