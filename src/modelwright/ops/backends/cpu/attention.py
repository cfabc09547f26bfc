"""Decode attention over pages by the compiled kernel: the checks and the pointers; the arithmetic is in C++."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from modelwright.ops.backends.cpu.build import available, call
from modelwright.ops.backends.cpu.layouts import DECODE, MOST_PARTS, PAGED_DECODE, StoredKind
from modelwright.ops.pages import Pages

STORED = {torch.float32: StoredKind.FP32, torch.bfloat16: StoredKind.BF16, torch.int8: StoredKind.INT8}
QUERIES = (torch.float32, torch.bfloat16)


def serves_decode(q: Tensor, *pages: Pages) -> bool:
    """Whether the kernel takes these queries over these pages: on the CPU, of types it knows."""
    known = all(kind.rows.dtype in STORED and kind.rows.is_cpu for kind in pages)
    return q.is_cpu and q.dtype in QUERIES and known and available()


def decode(
    queries: Sequence[Tensor],
    keys: Sequence[Pages],
    values: Pages,
    contexts: Tensor,
    tables: Tensor,
    scale: float,
    share: int = 0,
) -> Tensor:
    """One query per sequence over its pages; see ``ops/paged.py`` for what it computes.

    Args:
        queries: ``[sequences, heads, width]`` of each part of a key (latent and rotated), or of the whole key.
        keys: the parts; where ``values`` are the first of them, they are read once.
        contexts: ``[sequences]``, how many keys each has, 1 at least; tables ``[sequences, pages at most]``.
        share: how many keys are summed up together, a multiple of 32; 0 for as many as share out the work best, which
            depends on the other sequences.

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
    missing = MOST_PARTS - len(keys)
    packed = DECODE.pack(
        sequences,
        heads,
        keys[0].rows.shape[2] if keys[0].rows.dim() == 4 else 1,
        len(keys),
        *(number for q in queries for number in (q.data_ptr(), *q.stride()[:2])),
        *(0,) * 3 * missing,
        *(number for part in keys for number in _stored(part)),
        *(0,) * 10 * missing,
        *_stored(values),
        contexts.data_ptr(),
        tables.data_ptr(),
        tables.shape[1],
        values.page_size,
        share,
        scale * math.log2(math.e),
    )
    call(PAGED_DECODE, packed, first.dtype == torch.bfloat16, out.data_ptr(), torch.get_num_threads())
    return out


def _stored(pages: Pages) -> tuple[int, ...]:
    """The numbers of a ``Stored``: type, width, pointer, strides of page, token and head, and those of the scales."""
    rows, scales = pages.rows, pages.scales
    page, token, *head, number = rows.stride()
    if number != 1:
        raise ValueError(f"the numbers of a stored vector must lie side by side, got a stride of {number}")
    head = head or [0]
    factors = (0, 0, 0, 0) if scales is None else (scales.data_ptr(), *scales.stride(), 0)[:4]
    return (STORED[rows.dtype], rows.shape[-1], rows.data_ptr(), page, token, *head, *factors)
