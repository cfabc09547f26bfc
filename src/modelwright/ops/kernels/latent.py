"""``kv_b`` absorbed for a few tokens by the compiled kernels: the checks and the pointers; the arithmetic is in C++."""

import ctypes

import torch
from torch import Tensor

from modelwright.ops.kernels.build import build
from modelwright.ops.kernels.linear import is_bare, serves_linear

FEW_TOKENS = 8


def serves_latent(x: Tensor, kv_b: Tensor) -> bool:
    """Whether the kernels take ``x`` ``[1, heads, tokens, width]`` and are faster: few tokens of one row."""
    return x.shape[0] == 1 and x.shape[2] <= FEW_TOKENS and is_bare(x) and serves_linear(x, kv_b)


def latent_in(q_nope: Tensor, kv_b: Tensor) -> Tensor:
    """:func:`modelwright.ops.latent.query_to_latent` for a batch of one."""
    q_nope = q_nope if q_nope.stride(-1) == 1 else q_nope.contiguous()
    heads, tokens, nope = q_nope.shape[1:]
    out = q_nope.new_empty(1, heads, tokens, kv_b.shape[1])
    strides = map(ctypes.c_int64, (*q_nope.stride()[1:3], tokens))
    _call("latent_in", q_nope, kv_b, nope, *strides, out)
    return out


def latent_to_values(attended: Tensor, kv_b: Tensor, nope: int) -> Tensor:
    """:func:`modelwright.ops.latent.latent_to_values` for a batch of one."""
    attended = attended.contiguous()
    heads, tokens = attended.shape[1:3]
    out = attended.new_empty(1, heads, tokens, kv_b.shape[0] // heads - nope)
    _call("latent_out", attended, kv_b, nope, ctypes.c_int64(tokens), out)
    return out


def _call(name: str, x: Tensor, kv_b: Tensor, nope: int, *sizes: ctypes.c_int64 | Tensor) -> None:
    """``sizes`` end with the result."""
    heads, (*sizes_only, out) = x.shape[1], sizes
    assert isinstance(out, Tensor)
    getattr(build().library, name)(
        x.dtype == torch.bfloat16,
        ctypes.c_void_p(kv_b.data_ptr()),
        *map(ctypes.c_int64, (heads, kv_b.shape[0] // heads, nope, kv_b.shape[1])),
        ctypes.c_void_p(x.data_ptr()),
        *sizes_only,
        ctypes.c_void_p(out.data_ptr()),
        torch.get_num_threads(),
    )
