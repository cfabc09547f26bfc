"""Attention of a prompt's tokens by the compiled kernel: the checks and the pointers; the arithmetic is in C++."""

import math
import struct

import torch
from torch import Tensor

from modelwright.ops.kernels.build import build, call
from modelwright.ops.kernels.linear import is_bare

_PREFILL = struct.Struct("6q 9q q f")
"""`Prefill` of prefill.cpp: the counts, pointers and strides of queries, keys and values, the result, the scale."""
_FEWEST_TOKENS = 16
_CHANNELS = 8
"""What the width of the values is a multiple of."""


def serves_prefill(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel takes these and is faster: several tokens in bf16, on a CPU that multiplies it by vectors."""
    if q.device.type != "cpu" or not q.dtype == k.dtype == v.dtype == torch.bfloat16 or not is_bare(q):
        return False
    if q.shape[0] != 1 or q.shape[2] < _FEWEST_TOKENS or q.shape[-1] % 2 or v.shape[-1] % _CHANNELS:
        return False
    library = build().library
    return library is not None and bool(library.serves_prefill())


def prefill(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The last tokens of one sequence over all its keys; see :func:`modelwright.ops.paged.prefill_attention`.

    q ``[1, heads, tokens, k_dim]``, k and v ``[1, kv_heads, keys, dim]`` -> ``[1, heads, tokens, v_dim]``, a view of
    memory in the order of tokens.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    _, heads, tokens, k_dim = q.shape
    _, kv_heads, keys, v_dim = v.shape
    out = q.new_empty(1, tokens, heads, v_dim)
    packed = _PREFILL.pack(
        *(heads, kv_heads, tokens, keys, k_dim, v_dim),
        *(number for x in (q, k, v) for number in (x.data_ptr(), *x.stride()[1:3])),
        out.data_ptr(),
        scale * math.log2(math.e),
    )
    call("prefill", "si", packed, torch.get_num_threads())
    return out.transpose(1, 2)
