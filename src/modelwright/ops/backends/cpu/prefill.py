"""Attention of a prompt's tokens by the compiled kernel: the checks and the pointers; the arithmetic is in C++."""

import math
from functools import cache

import torch
from torch import Tensor

from modelwright.ops.backends.cpu.build import ask, available, call
from modelwright.ops.backends.cpu.layouts import PREFILL, PREFILL_CHANNELS, PREFILL_ROWS, SERVES_PREFILL
from modelwright.ops.backends.cpu.thresholds import PREFILL_TOKENS


def serves_prefill(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel takes these and is faster: several tokens in bf16, on a CPU that multiplies it by vectors."""
    if not (q.is_cpu and q.dtype == k.dtype == v.dtype == torch.bfloat16):
        return False
    if q.shape[2] < PREFILL_TOKENS or q.shape[-1] % 2 or v.shape[-1] % PREFILL_CHANNELS:
        return False
    return available() and _is_compiled()


@cache
def _is_compiled() -> bool:
    """Whether the kernels were compiled for a processor that multiplies bf16 by vectors and has no matrix unit."""
    return bool(ask(SERVES_PREFILL))


def prefill(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool = True) -> Tensor:
    """The last tokens of each sequence over all its keys; see :func:`modelwright.ops.paged.prefill_attention`.

    q ``[batch, heads, tokens, k_dim]``, k and v ``[batch, kv_heads, keys, dim]`` -> ``[batch, heads, tokens, v_dim]``,
    a view of memory in the order of tokens. Unless ``causal``, every token sees all keys.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads, tokens, k_dim = q.shape
    _, kv_heads, keys, v_dim = v.shape
    out = q.new_empty(batch, tokens, heads, v_dim)
    for own in zip(q, k, v, out, strict=True):
        packed = PREFILL.pack(
            *(heads, kv_heads, tokens, keys, keys - tokens if causal else keys, k_dim, v_dim),
            *(number for x in own[:3] for number in (x.data_ptr(), *x.stride()[:2])),
            own[3].data_ptr(),
            scale * math.log2(math.e),
        )
        call(PREFILL_ROWS, packed, torch.get_num_threads())
    return out.transpose(1, 2)
