"""Attention with gradients on a CPU: the compiled kernels, or torch's fused ones in fp32 of types that it lacks.

The kernels take 0.65 of torch's time for fp32 and 0.1 to 0.5 for bf16, forward and back (AVX-512). Where torch has no
products of bf16, its own backward pass takes 5 to 7 times as long as in fp32; copies in fp32 last for one call. What is
kept has the type of the operands. Leaves out which attention is meant (``attention.py``).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends.cpu.trained import empty_by_tokens
from modelwright.ops.products import are_numbers, as_autocast, in_fp32, multiplied_in

_fused: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_fused_backward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
"""Not among what torch documents: without them it computes attention with gradients in its own way, in fp32."""


def wants_gradients(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether they are to reach any of the three."""
    return torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)


def is_trained_here(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether gradients are wanted, and :func:`trained_attention` serves these in the type they are multiplied in."""
    if not wants_gradients(q, k, v) or (mask is not None and (mask.requires_grad or mask.dim() not in (2, 4))):
        return False
    if in_fp32(q, k, v):
        four = q.dim() == k.dim() == v.dim() == 4 and q.numel() > 0 and k.numel() > 0
        return four and None not in (_fused, _fused_backward) and q.shape[-1] == k.shape[-1] >= v.shape[-1]
    dtype = multiplied_in(q, k, v) if q.is_cpu else None
    return dtype is not None and are_numbers(q, k, v) and kernels.serves_trained_attention(q, k, v, mask, dtype)


def trained_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """``fused_attention`` without dropout; shapes as there."""
    return _attention(as_autocast(q), as_autocast(k), as_autocast(v), mask, scale, causal)[0]


def _operands(mask: Tensor | None, *parts: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """In fp32 and as the kernels want them: all as wide as the widest, numbers side by side, a mask that is added."""
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
    width = max(each.shape[-1] for each in parts)
    wide = (each.float() for each in parts)
    wide = (each if each.shape[-1] == width else F.pad(each, (0, width - each.shape[-1])) for each in wide)
    laid = [each if each.stride(-1) == 1 else each.contiguous() for each in wide]
    return laid, None if mask is None else mask.float()


def _laid(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``[batch, heads, tokens, width]`` that lies by tokens, as projections take it and make it."""
    return x.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format).transpose(1, 2)


@torch.library.custom_op("modelwright::trained_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    if not kernels.torch_lacks(q.dtype):
        return kernels.attend(q, k, v, mask, scale, causal)
    (q32, k32, v32), added = _operands(mask, q, k, v)
    out, sums = _fused(q32, k32, v32, 0.0, causal, attn_mask=added, scale=scale)
    return _laid(out[..., : v.shape[-1]], q.dtype), sums.contiguous()


@torch.library.custom_op("modelwright::trained_attention_backward", mutates_args=())
def _attention_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    sums: Tensor,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if not kernels.torch_lacks(q.dtype):
        return kernels.attend_backward(gradient, q, k, v, mask, out, sums, scale, causal)
    (g32, q32, k32, v32, o32), added = _operands(mask, gradient, q, k, v, out)
    found = _fused_backward(g32, q32, k32, v32, o32, sums, 0.0, causal, attn_mask=added, scale=scale)
    of_q, of_k, of_v = (_laid(own[..., : each.shape[-1]], q.dtype) for own, each in zip(found, (q, k, v), strict=True))
    return of_q, of_k, of_v


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    return empty_by_tokens(q, v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)


@_attention_backward.register_fake
def _(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_by_tokens(q, q.shape[-1]), empty_by_tokens(k, k.shape[-1]), empty_by_tokens(v, v.shape[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, ctx.scale, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, mask, *output)


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # by who asks for gradients of gradients
        q, k, v, mask = ctx.saved_tensors[:4]
        return *_differentiable(gradient, q, k, v, mask, ctx.scale, ctx.causal), None, None, None
    return *_attention_backward(gradient, *ctx.saved_tensors, ctx.scale, ctx.causal), None, None, None


def _differentiable(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool
) -> list[Tensor | None]:
    """The gradients of q, k and v by torch's written-out attention, whose own have gradients."""
    wanted = [each for each in (q, k, v) if each.requires_grad]
    grouped = q.shape[1] != k.shape[1]
    with sdpa_kernel(SDPBackend.MATH):
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=True))
    return [next(found) if each.requires_grad else None for each in (q, k, v)]


_attention.register_autograd(_backward, setup_context=_keep)
