"""Decode attention over pages by the compiled kernel: the checks and the pointers; the arithmetic is in C++."""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from modelwright.ops.kernels.build import build
from modelwright.ops.pages import Pages

STORED = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
QUERIES = (torch.float32, torch.bfloat16)


class _Stored(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("width", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("strides", ctypes.c_int64 * 3),
        ("scales", ctypes.c_void_p),
        ("scale_strides", ctypes.c_int64 * 3),
    ]


class _Queries(ctypes.Structure):
    _fields_ = [("rows", ctypes.c_void_p), ("strides", ctypes.c_int64 * 2)]


class _Decode(ctypes.Structure):
    _fields_ = [
        ("sequences", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("parts", ctypes.c_int64),
        ("queries", _Queries * 2),
        ("keys", _Stored * 2),
        ("values", _Stored),
        ("contexts", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("table", ctypes.c_int64),
        ("page_size", ctypes.c_int64),
        ("scale", ctypes.c_float),
    ]


def serves_decode(q: Tensor, *pages: Pages) -> bool:
    """Whether the kernel takes these queries over these pages: on the CPU, of types it knows, without autograd."""
    if q.device.type != "cpu" or q.dtype not in QUERIES or (torch.is_grad_enabled() and q.requires_grad):
        return False
    known = all(kind.rows.dtype in STORED and kind.rows.device.type == "cpu" for kind in pages)
    return known and build().library is not None


def decode(
    queries: Sequence[Tensor], keys: Sequence[Pages], values: Pages, contexts: Tensor, tables: Tensor, scale: float
) -> Tensor:
    """One query per sequence over its pages; see ``ops/paged.py`` for what it computes.

    Args:
        queries: ``[sequences, heads, width]`` of each part of a key (latent and rotated), or of the whole key.
        keys: the parts; where ``values`` are the first of them, they are read once.
        contexts: ``[sequences]``, how many keys each has, 1 at least; tables ``[sequences, pages at most]``.

    Returns:
        ``[sequences, heads, width of the values]``.
    """
    for q, part in zip(queries, keys, strict=True):
        if q.shape[-1] != part.width:  # pointers carry no sizes
            raise ValueError(f"the width of the queries ({q.shape[-1]}) must be that of the keys ({part.width})")
    queries = [q if q.stride(-1) == 1 else q.contiguous() for q in queries]
    first, (sequences, heads) = queries[0], queries[0].shape[:2]
    contexts = contexts.to("cpu", torch.int32).contiguous()
    tables = tables.to("cpu", torch.int32).contiguous()
    out = first.new_empty(sequences, heads, values.width)
    call = _Decode(
        sequences=sequences,
        heads=heads,
        kv_heads=keys[0].rows.shape[2] if keys[0].rows.dim() == 4 else 1,
        parts=len(keys),
        queries=(_Queries * 2)(*(_Queries(q.data_ptr(), q.stride()[:2]) for q in queries)),
        keys=(_Stored * 2)(*map(_stored, keys)),
        values=_stored(values),
        contexts=contexts.data_ptr(),
        tables=tables.data_ptr(),
        table=tables.shape[1],
        page_size=values.page_size,
        scale=scale * math.log2(math.e),
    )
    library = build().library
    assert library is not None
    library.paged_decode(
        ctypes.byref(call), first.dtype == torch.bfloat16, ctypes.c_void_p(out.data_ptr()), torch.get_num_threads()
    )
    return out


def _stored(pages: Pages) -> _Stored:
    rows, scales = pages.rows, pages.scales
    if rows.stride(-1) != 1:
        raise ValueError(f"the numbers of a stored vector must lie side by side, got a stride of {rows.stride(-1)}")
    return _Stored(
        STORED[rows.dtype],
        rows.shape[-1],
        rows.data_ptr(),
        _three(rows.stride()[:-1]),
        None if scales is None else scales.data_ptr(),
        _three(() if scales is None else scales.stride()),
    )


def _three(strides: tuple[int, ...]) -> tuple[int, int, int]:
    """Of page, token and head, 0 where there are no heads."""
    page, token, head = (*strides, 0, 0, 0)[:3]
    return page, token, head
