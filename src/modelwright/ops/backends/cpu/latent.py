"""``kv_b`` absorbed for a few tokens by the compiled kernels: the checks and the pointers; the arithmetic is in C++."""

import torch
from torch import Tensor

from modelwright.ops.backends.cpu.build import call
from modelwright.ops.backends.cpu.layouts import BLOCK, LATENT_IN, LATENT_OUT, Unit
from modelwright.ops.backends.cpu.linear import serves_linear
from modelwright.ops.backends.cpu.thresholds import LATENT_TOKENS, LATENT_TOKENS_IN_BLOCKS
from modelwright.ops.backends.cpu.unit import torch_lacks, unit


def serves_latent(x: Tensor, kv_b: Tensor) -> bool:
    """Whether the kernels take ``x`` ``[1, heads, tokens, width]`` and are faster: few tokens of one row, mostly."""
    if x.shape[0] != 1 or not serves_linear(x, kv_b):
        return False
    widths = x.shape[-1], kv_b.shape[0] // x.shape[1], kv_b.shape[1]
    in_blocks = unit() != Unit.STREAMS and not any(width % BLOCK for width in widths)
    return torch_lacks(x.dtype) or x.shape[2] <= (LATENT_TOKENS_IN_BLOCKS if in_blocks else LATENT_TOKENS)


def latent_in(q_nope: Tensor, kv_b: Tensor) -> Tensor:
    """:func:`modelwright.ops.latent.query_to_latent` for a batch of one."""
    q_nope = q_nope if q_nope.stride(-1) == 1 else q_nope.contiguous()
    _, heads, tokens, nope = q_nope.shape
    _, head_stride, token_stride, _ = q_nope.stride()
    rows, rank = kv_b.shape
    out = q_nope.new_empty(1, heads, tokens, rank)
    call(
        LATENT_IN,
        q_nope.dtype == torch.bfloat16,
        kv_b.data_ptr(),
        heads,
        rows // heads,
        nope,
        rank,
        q_nope.data_ptr(),
        head_stride,
        token_stride,
        tokens,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def latent_to_values(attended: Tensor, kv_b: Tensor, nope: int) -> Tensor:
    """:func:`modelwright.ops.latent.latent_to_values` for a batch of one."""
    attended = attended.contiguous()
    _, heads, tokens, rank = attended.shape
    rows = kv_b.shape[0] // heads
    out = attended.new_empty(1, heads, tokens, rows - nope)
    call(
        LATENT_OUT,
        attended.dtype == torch.bfloat16,
        kv_b.data_ptr(),
        heads,
        rows,
        nope,
        rank,
        attended.data_ptr(),
        tokens,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
