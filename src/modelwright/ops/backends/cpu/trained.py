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


def serves_trained_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether the kernels take these as `dtype`: even widths in bf16, a mask of truth values if any.

    No operand is repeated but key-value heads by whole groups: the kernels are given pointers, which know no sizes.
    """
    if not (q.is_cpu and k.is_cpu and v.is_cpu and multiplies_by_vectors(dtype)):
        return False
    if mask is not None and (mask.dtype != torch.bool or mask.dim() not in (2, 4) or mask.device != q.device):
        return False
    if not (q.dim() == k.dim() == v.dim() == 4 and q.numel() > 0 and k.numel() > 0 and v.numel() > 0):
        return False
    fits = k.shape[:3] == v.shape[:3] and q.shape[0] == k.shape[0] and q.shape[1] % k.shape[1] == 0
    even = dtype == torch.float32 or not (q.shape[3] % 2 or v.shape[3] % 2)
    return fits and even and q.shape[3] == k.shape[3]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention ``[batch, heads, tokens, v_dim]``, zeros for a query that sees nothing, and what its gradients need.

    q ``[batch, heads, tokens, k_dim]``, k and v ``[batch, kv_heads, keys, dim]``; the mask broadcasts to ``[batch,
    heads, tokens, keys]``. The second result, fp32 ``[batch, heads, tokens]``, is the logarithm of the sum of each
    query's weights, in powers of two.
    """
    q, k, v = map(_laid, (q, k, v))
    out = empty_by_tokens(q, v.shape[-1])
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
    found = empty_by_tokens(q, q.shape[-1]), empty_by_tokens(k, k.shape[-1]), empty_by_tokens(v, v.shape[-1])
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


def empty_by_tokens(x: Tensor, width: int) -> Tensor:
    """``[batch, heads, tokens, width]`` for what is computed of ``x``, in the memory order of tokens."""
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
    """Whether the kernels multiply runs of rows ``[rows, in]`` by ``[experts, out, in]``: bf16 of even widths."""
    fits = x.dim() == 2 and weight.dim() == 3 and x.shape[1] == weight.shape[2]
    return fits and not any(size % 2 for size in weight.shape[1:]) and _multiplies(x, weight)


def serves_grouped_gradient(gradient: Tensor, x: Tensor) -> bool:
    """Whether the kernels multiply runs of rows by runs of rows, ``[rows, out]`` and ``[rows, in]``: bf16."""
    return gradient.dim() == x.dim() == 2 and len(gradient) == len(x) and _multiplies(gradient, x)


def _multiplies(x: Tensor, other: Tensor) -> bool:
    kind = x.is_cpu and other.is_cpu and x.dtype == other.dtype == torch.bfloat16
    return kind and multiplies_by_vectors(torch.bfloat16)


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """``x[rows of e] @ weight[e].T``: see :func:`modelwright.ops.experts.grouped_linear`.

    Raises:
        ValueError: the counts do not add up to the rows.
    """
    x, counts = x.contiguous(), _runs(counts, len(x))
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
    """``gradient[rows of e].T @ x[rows of e]``: ``[rows, out]`` and ``[rows, in]`` -> ``[experts, out, in]``.

    Raises:
        ValueError: the counts do not add up to the rows.
    """
    gradient, x, counts = gradient.contiguous(), x.contiguous(), _runs(counts, len(x))
    (experts,), out, width = counts.shape, gradient.shape[1], x.shape[1]
    y = x.new_empty(experts, out, width)
    call(
        GROUPED_WEIGHTS,
        *(gradient.data_ptr(), x.data_ptr(), experts, counts.data_ptr(), width, out, y.data_ptr(), _threads()),
    )
    return y


def _runs(counts: Tensor, rows: int) -> Tensor:
    """How many rows each expert has, as the kernels read it: they go as far as it says."""
    counts = counts.to("cpu", torch.int64).contiguous()
    if (total := int(counts.sum())) != rows or (counts < 0).any():
        raise ValueError(f"counts must be of all rows ({rows}), got {total}")
    return counts
