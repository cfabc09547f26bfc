"""Products as torch makes them, but in fp32 where it lacks those of a type: exact factors, one rounding at the end.

A processor without instructions for bf16 or fp16 takes up to 50 times as long for such a product as for one in fp32
(``torch_lacks``). The product of two such numbers is exact in fp32, so that the sums are at least as good as torch's
own. What is kept for gradients has the type of the operands; copies in fp32 last for one product, and those of the
larger operand are made piece by piece. The operations below serve whatever no kernel does: gradients, autocast, layers
that torch compiles. Exported graphs keep torch's own products.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.dispatch import graph_is_made, only_known_modes, transforms_active

PIECE = 2**22
"""Numbers of the larger operand, or of the result, that are held in fp32 at once: products of smaller pieces were up to
twice as slow (2**18) and 1.2 times (2**20), of the whole as fast."""
LEAST = 64
"""Rows or columns of a piece at least, however long they are."""
_CAST = frozenset({torch.float32, torch.bfloat16, torch.float16})
"""What autocast casts."""
_PLAIN = (Tensor, nn.Parameter)


def in_fp32(*operands: Tensor | None) -> bool:
    """Whether a product of these is made in fp32 here, of what autocast would make of them where it is enabled."""
    own = [each for each in operands if each is not None]
    if not own[0].is_cpu:
        return False
    dtype = multiplied_in(*own)
    if dtype is None or not kernels.torch_lacks(dtype):
        return False
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    return are_numbers(*own)


def multiplied_in(*operands: Tensor) -> torch.dtype | None:
    """The type in which the CPU multiplies these: their own or, where it is enabled, autocast's; None of several."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") if all(each.dtype in _CAST for each in operands) else None
    dtype = operands[0].dtype
    return dtype if all(each.dtype == dtype for each in operands) else None


def are_numbers(*operands: Tensor) -> bool:
    """Whether these are nothing but numbers, whose gradients may be wanted, and no graph or transformation is made.

    Of gradients backward alone can be had then: not of tensors that carry theirs forward.
    """
    plain = all(type(each) in _PLAIN for each in operands) and getattr(forward_ad, "_current_level", -1) < 0
    return plain and not graph_is_made(operands[0]) and not transforms_active() and only_known_modes()


def are_trained(*operands: Tensor) -> bool:
    """Whether the gradients of some of these are wanted, and nothing else is but numbers, in their own type."""
    wanted = torch.is_grad_enabled() and any(each.requires_grad for each in operands)
    return wanted and not torch.compiler.is_compiling() and are_numbers(*operands)


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: x ``[..., in]``, weight ``[out, in]``, bias ``[out]`` -> ``[..., out]``."""
    if weight.dim() != 2 or not in_fp32(x, weight, bias):
        return F.linear(x, weight, bias)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return addmm(bias, rows, weight.t()).view(*x.shape[:-1], weight.shape[0])


def addmm(added: Tensor | None, a: Tensor, b: Tensor, alpha: float = 1.0) -> Tensor:
    """``torch.addmm``: ``added + alpha * a @ b``; a ``[rows, in]``, b ``[in, out]``, added ``[out]``, ``[rows, out]``
    or nothing."""
    if in_fp32(a, b, added):
        return _product(as_autocast(a), as_autocast(b), None if added is None else as_autocast(added), alpha)
    if added is None:
        return alpha * torch.mm(a, b)
    return torch.addmm(added, a, b, alpha=alpha)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of as many dimensions, 2 or more, of which all but the last two are alike.

    As torch does, it keeps operands that lie closely for gradients: a part of what several were projected into would
    keep all of that.
    """
    if a.shape[:-2] != b.shape[:-2] or not in_fp32(a, b):
        return a @ b
    return _product(as_autocast(a).contiguous(), as_autocast(b).contiguous(), None, 1.0)


def patch_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.conv2d`` whose stride is the size of its kernel, which moves no number of ``x`` into two sums.

    x ``[batch, channels, height, width]``, weight ``[out, channels, size, other]`` -> ``[batch, out, rows, columns]``.
    """
    high, wide = weight.shape[2:]
    if not in_fp32(x, weight, bias):
        return F.conv2d(x, weight, bias, stride=(high, wide))
    rows, columns = x.shape[2] // high, x.shape[3] // wide
    whole = x[:, :, : rows * high, : columns * wide].unflatten(3, (columns, wide)).unflatten(2, (rows, high))
    patches = as_autocast(whole).permute(0, 2, 4, 1, 3, 5).flatten(3)  # [batch, rows, columns, channels * numbers]
    return plain_linear(patches, weight.flatten(1), bias).permute(0, 3, 1, 2)


def as_autocast(x: Tensor) -> Tensor:
    """``x`` in autocast's type where that is enabled."""
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


def multiply(
    a: Tensor, b: Tensor, added: Tensor | None = None, alpha: float = 1.0, dtype: torch.dtype | None = None
) -> Tensor:
    """``added + alpha * a @ b`` in fp32, rounded to ``dtype`` (that of ``a``), without gradients and autocast.

    a ``[..., rows, in]``, b ``[..., in, out]``. Of matrices, the operand with more rows or columns is cast in pieces.
    """
    dtype = dtype or a.dtype
    rows, columns = a.shape[-2], b.shape[-1]
    most = max(rows, columns)
    at_once = max(PIECE // max(a.shape[-1], min(rows, columns), 1), LEAST)
    if a.dim() > 2 or at_once >= most:
        return _whole(a.float(), b.float(), added, alpha).to(dtype)
    out = a.new_empty(rows, columns, dtype=dtype)
    starts = range(0, most, at_once)
    if columns >= rows:
        a = a.float()
        for part in (slice(start, start + at_once) for start in starts):
            out[:, part] = _whole(a, b[:, part].float(), None if added is None else added[..., part], alpha)
        return out
    b = b.float()
    for part in (slice(start, start + at_once) for start in starts):
        own = added if added is None or added.dim() == 1 else added[part]
        out[part] = _whole(a[part].float(), b, own, alpha)
    return out


def _whole(a: Tensor, b: Tensor, added: Tensor | None, alpha: float) -> Tensor:
    if added is not None:
        return torch.addmm(added.float(), a, b, alpha=alpha)
    out = torch.matmul(a, b)
    return out if alpha == 1.0 else out.mul_(alpha)


@torch.library.custom_op("modelwright::product", mutates_args=())
def _product(a: Tensor, b: Tensor, added: Tensor | None, alpha: float) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return multiply(a, b, added, alpha)


@_product.register_fake
def _(a: Tensor, b: Tensor, added: Tensor | None, alpha: float) -> Tensor:
    return a.new_empty(*a.shape[:-1], b.shape[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, added, ctx.alpha = inputs
    ctx.dims = 0 if added is None else added.dim()
    wants_a, wants_b, *_ = ctx.needs_input_grad
    ctx.save_for_backward(a if wants_b else None, b if wants_a else None)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    of_a = of_b = of_added = None
    if b is not None:
        of_a = _product(gradient, b.mT, None, ctx.alpha)
    if a is not None:
        of_b = _product(gradient.mT, a, None, ctx.alpha).mT  # lies as a layer's weight does, whose transpose b is
    if ctx.needs_input_grad[2]:
        of_added = gradient.sum(0) if ctx.dims == 1 else gradient
    return of_a, of_b, of_added, None


_product.register_autograd(_backward, setup_context=_keep)
