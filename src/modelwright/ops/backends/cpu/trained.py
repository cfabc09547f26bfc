"""What training asks of the compiled kernels: attention with its gradients, and products of experts with theirs."""

import math
from functools import cache

import torch
from torch import Tensor

from modelwright.ops.backends.cpu.build import ask, available, call
from modelwright.ops.backends.cpu.layouts import (
    ATTEND_BACKWARD,
    ATTEND_FORWARD,
    GROUPED_ROWS,
    GROUPED_WEIGHTS,
    SERVES_TRAINING,
    TRAINED,
    Unit,
)
from modelwright.ops.backends.cpu.unit import unit

_NONE = (0, 0, 0, 0)


def multiplies_by_vectors(dtype: torch.dtype) -> bool:
    """Whether vectors are what multiplies a type fastest here: fp32 in wide registers, bf16 without a matrix unit."""
    if dtype == torch.bfloat16:
        return available() and unit() == Unit.DOTS
    return dtype == torch.float32 and available() and _is_compiled()


@cache
def _is_compiled() -> bool:
    """Whether the kernels were compiled for registers of 16 floats."""
    return bool(ask(SERVES_TRAINING))


def serves_trained_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether the kernels take these: one type, even widths in bf16, a mask of truth values if any."""
    if not (q.is_cpu and q.dtype == k.dtype == v.dtype and multiplies_by_vectors(q.dtype)):
        return False
    if mask is not None and (mask.dtype != torch.bool or mask.dim() not in (2, 4) or mask.device != q.device):
        return False
    even = q.dtype == torch.float32 or not (q.shape[-1] % 2 or v.shape[-1] % 2)
    return q.dim() == k.dim() == v.dim() == 4 and even and q.numel() > 0 and k.numel() > 0 and v.numel() > 0


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention ``[batch, heads, tokens, v_dim]``, zeros for a query that sees nothing, and what its gradients need.

    q ``[batch, heads, tokens, k_dim]``, k and v ``[batch, kv_heads, keys, dim]``; the mask broadcasts to ``[batch,
    heads, tokens, keys]``. The second result, fp32 ``[batch, heads, tokens]``, is the logarithm of the sum of each
    query's weights, in powers of two.
    """
    q, k, v = map(_laid, (q, k, v))
    out = _empty(q, v.shape[-1])
    sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
    mask = _broadcast(mask, q, k)
    strides = (*map(_tokens, (q, k, v, out)), _NONE, _NONE, _NONE, _NONE)
    call(ATTEND_FORWARD, _packed(q, v, mask, strides, sums, causal, scale), q.dtype == torch.bfloat16, _threads())
    return out, sums


def attend_backward(
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
    """The gradients of q, k and v by that of :func:`attend`'s first result."""
    gradient, q, k, v, out = map(_laid, (gradient, q, k, v, out))
    found = _empty(q, q.shape[-1]), _empty(k, k.shape[-1]), _empty(v, v.shape[-1])
    mask = _broadcast(mask, q, k)
    strides = tuple(map(_tokens, (q, k, v, out, gradient, *found)))
    call(ATTEND_BACKWARD, _packed(q, v, mask, strides, sums, causal, scale), q.dtype == torch.bfloat16, _threads())
    return found


def _packed(
    q: Tensor,
    v: Tensor,
    mask: Tensor | None,
    strides: tuple[tuple[int, ...], ...],
    sums: Tensor,
    causal: bool,
    scale: float,
) -> bytes:
    batch, heads, tokens, k_dim = q.shape
    _, kv_heads, keys, v_dim = v.shape
    of_mask = _NONE if mask is None else (mask.data_ptr(), *mask.stride()[:3])
    return TRAINED.pack(
        *(batch, heads, kv_heads, tokens, keys, k_dim, v_dim),
        *(number for own in strides for number in own),
        *(sums.data_ptr(), *of_mask),
        *(causal, scale, scale * math.log2(math.e)),
    )


def _laid(x: Tensor) -> Tensor:
    """Numbers of a token side by side, and in bf16 an even number of them from one to the next."""
    return x if x.stride(-1) == 1 and x.stride(2) % 2 == 0 else x.contiguous()


def _empty(x: Tensor, width: int) -> Tensor:
    batch, heads, tokens, _ = x.shape
    return x.new_empty(batch, tokens, heads, width).transpose(1, 2)


def _tokens(x: Tensor) -> tuple[int, ...]:
    return (x.data_ptr(), *x.stride()[:3])


def _broadcast(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    if mask is None:
        return None
    mask = mask.expand(*q.shape[:-1], k.shape[2])
    return mask if mask.stride(-1) == 1 else mask.contiguous()


def _threads() -> int:
    return torch.get_num_threads()


def serves_grouped(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take runs of rows ``[rows, in]`` and what they meet, ``[experts, out, in]`` or other rows.

    They take bf16 of even widths where vectors multiply it.
    """
    kind = x.is_cpu and x.dtype == weight.dtype == torch.bfloat16 and multiplies_by_vectors(x.dtype)
    return kind and not any(size % 2 for size in (x.shape[1], *weight.shape[1:]))


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """``x[rows of e] @ weight[e].T``: see :func:`modelwright.ops.experts.grouped_linear`."""
    x, counts = x.contiguous(), counts.contiguous()
    if 1 not in weight.stride()[1:]:
        weight = weight.contiguous()
    turned = weight.stride(2) != 1
    experts, out, width = weight.shape
    y = x.new_empty(x.shape[0], out)
    call(
        GROUPED_ROWS,
        *(x.data_ptr(), weight.data_ptr(), weight.stride(0), weight.stride(2 if turned else 1), turned, experts),
        *(counts.data_ptr(), width, out, y.data_ptr(), _threads()),
    )
    return y


def grouped_weight_gradient(gradient: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    """``gradient[rows of e].T @ x[rows of e]``: ``[rows, out]`` and ``[rows, in]`` -> ``[experts, out, in]``."""
    gradient, x, counts = gradient.contiguous(), x.contiguous(), counts.contiguous()
    (experts,), out, width = counts.shape, gradient.shape[1], x.shape[1]
    y = x.new_empty(experts, out, width)
    call(
        GROUPED_WEIGHTS,
        *(gradient.data_ptr(), x.data_ptr(), experts, counts.data_ptr(), width, out, y.data_ptr(), _threads()),
    )
    return y
