"""Norms and rotations row by row by the compiled kernels: the checks and the pointers; the arithmetic is in C++."""

import ctypes

import torch
from torch import Tensor

from modelwright.ops.kernels.build import build
from modelwright.ops.kernels.linear import is_bare

TYPES = (torch.float32, torch.bfloat16)


def serves_rows(x: Tensor, *others: Tensor) -> bool:
    """Whether the kernels take ``x`` and what goes with it: on the CPU, of types they know, numbers alone."""
    if not is_bare(x) or x.device.type != "cpu" or x.dtype not in TYPES or x.stride(-1) != 1:
        return False
    return all(other.device == x.device and other.is_contiguous() for other in others) and build().library is not None


def rms_norm(x: Tensor, weight: Tensor, eps: float, once: bool) -> Tensor:
    """``weight * x / rms(x)`` over the last dimension, in fp32; see :class:`modelwright.layers.RMSNorm`.

    ``once`` rounds the result alone, otherwise the quotient is rounded to the type of ``x`` before. ``weight``
    ``[dim]`` has that type too.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    library = build().library
    assert library is not None
    library.norm_rows(
        x.dtype == torch.bfloat16,
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_int64(x.numel() // x.shape[-1]),
        ctypes.c_int64(x.shape[-1]),
        ctypes.c_void_p(weight.data_ptr()),
        ctypes.c_float(eps),
        once,
        ctypes.c_void_p(out.data_ptr()),
        torch.get_num_threads(),
    )
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """:func:`modelwright.ops.rotary.rotate_half_split` or ``rotate_interleaved``, for a batch of one.

    x ``[1, heads, tokens, dim]``, cos and sin ``[1, tokens, dim / 2]`` in fp32; the result is a view of memory in the
    order of tokens, as pages keep keys.
    """
    _, heads, tokens, dim = x.shape
    out = x.new_empty(1, tokens, heads, dim)
    library = build().library
    assert library is not None
    library.rotate_rows(
        x.dtype == torch.bfloat16,
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_int64(x.stride(1)),
        ctypes.c_int64(x.stride(2)),
        ctypes.c_int64(heads),
        ctypes.c_int64(tokens),
        ctypes.c_int64(dim),
        ctypes.c_void_p(cos.data_ptr()),
        ctypes.c_void_p(sin.data_ptr()),
        interleaved,
        ctypes.c_void_p(out.data_ptr()),
        torch.get_num_threads(),
    )
    return out.transpose(1, 2)
