"""Vectors kept in pages: what is stored of each token, int8 included, and how it is read and copied.

A page holds ``page_size`` tokens, wherever it lies in the pool; a sequence's table names its pages in order. Leaves out
how it is written (``ops/page_writes.py``), who gets which page (``engine/blocks.py``) and what is done with the vectors
(``ops/paged.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

INT8_MAX = 127


@dataclass(frozen=True)
class Pages:
    """One kind of vector of every token of a pool.

    ``rows`` is ``[pages, page_size, ..., width]``, where ``...`` may be heads; int8 rows are to be multiplied with
    ``scales`` ``[pages, page_size, ...]`` (fp32), other types have none. Both may be views of a wider pool.
    """

    rows: Tensor
    scales: Tensor | None = None

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        return self.rows.shape[1]

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.rows.shape[-1]


def quantise_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``[..., width]`` to int8 of that shape and fp32 scales ``[...]``, by the largest magnitude of each vector.

    ``dequantise_rows`` is then off by at most half a scale, which is the largest magnitude / 254.
    """
    wide = rows.float()
    scales = wide.abs().amax(dim=-1) / INT8_MAX
    steps = wide / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    return steps.round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scales


def dequantise_rows(rows: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`quantise_rows`, rounded to ``dtype`` once."""
    return (rows.float() * scales[..., None]).to(dtype)


def read_pages(pages: Pages, table: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """The first ``count`` vectors of a sequence, ``[count, ..., width]`` in ``dtype``; no other page is touched."""
    table = table[: -(-count // pages.page_size)]
    rows = pages.rows[table].flatten(0, 1)[:count]
    if pages.scales is None:
        return rows.to(dtype)
    return dequantise_rows(rows, pages.scales[table].flatten(0, 1)[:count], dtype)


def copy_pages(pages: Pages, copies: Sequence[tuple[int, int]]) -> None:
    """Copy whole pages, ``(from, to)`` each; all are read before any is written."""
    if not copies:
        return
    sources, targets = torch.tensor(copies, device=pages.rows.device).unbind(1)
    for stored in (pages.rows, pages.scales):
        if stored is not None:
            stored[targets] = stored[sources]


def move_pages(source: Tensor, target: Tensor, moves: Sequence[tuple[int, int]]) -> None:
    """Copy whole pages, ``(from, to)`` each, in order, into another pool of the same shape but for the pages' number.

    The two may lie on different devices. Between a GPU and pinned memory nothing is waited for: who reads ``target`` on
    the same stream reads what was moved, and who reads it on the host must wait for that stream.
    """
    for page, place in moves:
        target[place].copy_(source[page], non_blocking=True)


def slots_of(table: Sequence[int], page_size: int, start: int, stop: int) -> list[int]:
    """The slots of a sequence's tokens ``start`` to ``stop - 1``."""
    return [table[place // page_size] * page_size + place % page_size for place in range(start, stop)]
