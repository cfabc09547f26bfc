"""Attention over keys and values kept in pages: storing them, int8 included, and the written-out product per sequence.

A page holds ``page_size`` tokens, wherever it lies in the pool; a sequence's table names its pages in order. Queries of
all sequences are packed in one row, ``starts`` ``[sequences + 1]`` says where each one's begin, and ``contexts``
``[sequences]`` how many keys it has in the end: its queries are the last of its tokens. Leaves out who gets which page
(``engine/blocks.py``), and the compiled decode kernels (``ops/kernels/``), which these functions document.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.ops.attention import causal_mask, fused_attention, reference_attention

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


def write_pages(pages: Pages, slots: Tensor, values: Tensor) -> None:
    """Store ``values`` ``[tokens, ..., width]`` at ``slots`` ``[tokens]``, each ``page * page_size + place``."""
    rows = pages.rows.view(-1, *pages.rows.shape[2:])  # [pages * page_size, ..., width]
    if pages.scales is None:
        rows.index_copy_(0, slots, values.to(rows.dtype))
        return
    steps, scales = quantise_rows(values)
    rows.index_copy_(0, slots, steps)
    pages.scales.view(-1, *pages.scales.shape[2:]).index_copy_(0, slots, scales)


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


def slots_of(table: Sequence[int], page_size: int, start: int, stop: int) -> list[int]:
    """The slots of a sequence's tokens ``start`` to ``stop - 1``."""
    return [table[place // page_size] * page_size + place % page_size for place in range(start, stop)]


def paged_attention(
    q: Tensor, keys: Pages, values: Pages, starts: Sequence[int], contexts: Sequence[int], tables: Tensor, scale: float
) -> Tensor:
    """Each sequence's queries over its own pages. The documentation of every faster way.

    Args:
        q: ``[tokens, heads, k_dim]``.
        keys, values: of ``kv_heads`` heads, the tokens' own included.
        tables: ``[sequences, pages at most]``; what lies beyond a sequence's last page is not looked at.

    Returns:
        ``[tokens, heads, v_dim]``.
    """
    parts = []
    for table, start, stop, context in zip(tables, starts, starts[1:], contexts, strict=False):
        k, v = (read_pages(kind, table, context, q.dtype).transpose(0, 1)[None] for kind in (keys, values))
        own = q[start:stop].transpose(0, 1)[None]  # [1, heads, its tokens, k_dim]
        sees = causal_mask(stop - start, context, context - (stop - start), q.device)
        parts.append(reference_attention(own, k, v, sees, scale)[0].transpose(0, 1))
    return torch.cat(parts) if parts else q.new_empty(0, q.shape[1], values.width)


def paged_latent_attention(
    q_latent: Tensor,
    q_rope: Tensor,
    latent: Pages,
    k_rope: Pages,
    starts: Sequence[int],
    contexts: Sequence[int],
    tables: Tensor,
    scale: float,
) -> Tensor:
    """:func:`paged_attention` where one latent per token is the key and the value of every head.

    q_latent ``[tokens, heads, rank]`` are queries taken into the latent space, q_rope ``[tokens, heads, rope]`` their
    rotated part; the result, ``[tokens, heads, rank]``, is still to be taken out of that space (``ops/latent.py``).
    """
    parts = []
    for table, start, stop, context in zip(tables, starts, starts[1:], contexts, strict=False):
        shared, rotated = (read_pages(kind, table, context, q_latent.dtype) for kind in (latent, k_rope))
        q = torch.cat((q_latent[start:stop], q_rope[start:stop]), dim=-1).transpose(0, 1)[None]
        k = torch.cat((shared, rotated), dim=-1)[None, None]
        sees = causal_mask(stop - start, context, context - (stop - start), q.device)
        parts.append(reference_attention(q, k, shared[None, None], sees, scale)[0].transpose(0, 1))
    return torch.cat(parts) if parts else torch.empty_like(q_latent)


def decode_attention(q: Tensor, keys: Pages, values: Pages, contexts: Tensor, tables: Tensor, scale: float) -> Tensor:
    """One query per sequence, ``[sequences, heads, k_dim]`` -> ``[sequences, heads, v_dim]``."""
    parts = []
    for query, table, context in zip(q, tables, contexts.tolist(), strict=True):
        k, v = (read_pages(kind, table, context, q.dtype).transpose(0, 1)[None] for kind in (keys, values))
        parts.append(fused_attention(query[None, :, None], k, v, None, scale)[0, :, 0])
    return torch.stack(parts)


def decode_latent_attention(
    q_latent: Tensor, q_rope: Tensor, latent: Pages, k_rope: Pages, contexts: Tensor, tables: Tensor, scale: float
) -> Tensor:
    """One query per sequence, ``[sequences, heads, rank]`` and its rotated part -> ``[sequences, heads, rank]``."""
    parts = []
    for inner, rotated, table, context in zip(q_latent, q_rope, tables, contexts.tolist(), strict=True):
        past, past_rope = (read_pages(kind, table, context, q_latent.dtype) for kind in (latent, k_rope))
        # The past stands on the left: kernels for few columns read a long left side once (see ops/latent.py).
        scores = (past @ inner.T + past_rope @ rotated.T).T.float() * scale  # [heads, keys]
        parts.append(scores.softmax(dim=-1).to(past.dtype) @ past)
    return torch.stack(parts)


def prefill_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The last tokens of one sequence over all its keys: q ``[1, heads, tokens, k_dim]``, k and v as many or more.

    torch's tiled CPU kernel takes values as wide as keys only; the product it falls back to otherwise writes out all
    scores (at 2048 tokens and widths 192 and 128 in 2.6 times the time), so there the values are padded.
    """
    tokens, past, v_dim = q.shape[2], k.shape[2] - q.shape[2], v.shape[-1]
    mask = None if past == 0 or tokens == 1 else causal_mask(tokens, k.shape[2], past, q.device)
    if q.device.type == "cpu" and v_dim < q.shape[-1]:
        v = F.pad(v, (0, q.shape[-1] - v_dim))
    return fused_attention(q, k, v, mask, scale, causal=past == 0)[..., :v_dim]
