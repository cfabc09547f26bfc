"""Attention for the engine: sequences packed in one row, their keys and values in pages of one pool per layer.

Inference only. Decides for each sequence of a step which product serves it; the products themselves, and how pages are
stored, are in ``ops/paged.py``. Who owns which page is the engine's business.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from modelwright.attention.pool import PagedBatch, PagePool
from modelwright.attention.protocol import Projection
from modelwright.ops.invariant import rows_are_invariant
from modelwright.ops.latent import (
    expand_latent,
    latent_to_values,
    prefers_absorbing,
    query_to_latent,
)
from modelwright.ops.paged import (
    continued_attention,
    continued_latent_attention,
    decode_attention,
    decode_latent_attention,
    prefill_attention,
)


@dataclass(frozen=True)
class _Chunk:
    """Several tokens of one sequence: which of the row, its pages, and its keys with them."""

    rows: slice
    table: Tensor
    context: int

    @property
    def past(self) -> int:
        """Keys that were in pages before."""
        return self.context - (self.rows.stop - self.rows.start)


@dataclass(frozen=True)
class _Decodes:
    """The sequences with one token: which of the row, their keys and their pages."""

    rows: slice | Tensor
    contexts: Tensor
    tables: Tensor

    def chunks(self) -> Iterator[_Chunk]:
        """Each as a chunk of its own, for a product that takes one sequence at a time."""
        rows = torch.arange(self.rows.stop) if isinstance(self.rows, slice) else self.rows
        for row, table, context in zip(rows.tolist(), self.tables, self.contexts.tolist(), strict=True):
            yield _Chunk(slice(row, row + 1), table, context)


class PagedAttention:
    """The backend of one step: writes the new tokens into ``pools``, one per layer, then attends.

    A sequence's only new token attends over its pages where they lie, in latent space if the layer is latent. Several
    new tokens without a past attend among themselves; with one, their pages are gathered, and a latent past is expanded
    or not as :func:`prefers_absorbing` says. Only a ``kv_b`` that is more than its weight (an adapter, a hook, a
    quantised layer) must expand the past at every step.

    Raises:
        ValueError: at a layer, if dropout is asked for.
    """

    def __init__(self, pools: Sequence[PagePool], batch: PagedBatch):
        self.pools = pools
        self.slots = batch.slots
        self._decodes, self._chunks = _split(batch)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: float = 0.0) -> Tensor:
        """See :class:`AttentionBackend`; the batch is 1."""
        _refuse_dropout(dropout)
        pool = self.pools[layer]
        pool.write(self.slots, k[0].transpose(0, 1), v[0].transpose(0, 1))

        def decode(part: _Decodes) -> Tensor:
            own = q[0, :, part.rows].transpose(0, 1)  # [sequences, heads, k_dim]
            out = decode_attention(own, pool.keys, pool.values, part.contexts, part.tables, scale)
            return out.transpose(0, 1)[None]

        def prefill(part: _Chunk) -> Tensor:
            own = q[:, :, part.rows]
            if part.past:
                return continued_attention(own, pool.keys, pool.values, part.context, part.table, scale)
            return prefill_attention(own, k[:, :, part.rows], v[:, :, part.rows], scale)

        return self._each_part(decode, prefill)

    def attend_latent(
        self,
        layer: int,
        q_nope: Tensor,
        q_rope: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        kv_b: Projection,
        *,
        kv_b_weight: Tensor | None,
        scale: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """See :class:`AttentionBackend`; the batch is 1."""
        _refuse_dropout(dropout)
        pool = self.pools[layer]
        pool.write(self.slots, k_rope[0], latent[0])
        heads, _, nope = q_nope.shape[1:]
        weight = kv_b_weight

        def decode(part: _Decodes) -> Tensor:
            if weight is None:
                return torch.cat([prefill(one) for one in part.chunks()], dim=2)
            own = query_to_latent(q_nope[:, :, part.rows], weight)[0].transpose(0, 1)  # [sequences, heads, rank]
            rotated = q_rope[0, :, part.rows].transpose(0, 1)
            out = decode_latent_attention(own, rotated, pool.values, pool.keys, part.contexts, part.tables, scale)
            return latent_to_values(out.transpose(0, 1)[None], weight, nope)

        def prefill(part: _Chunk) -> Tensor:
            own = q_nope[:, :, part.rows], q_rope[:, :, part.rows]
            if weight is not None and _absorbs(own[0], part.context, weight):
                pages = pool.values, pool.keys, part.context, part.table
                return continued_latent_attention(*own, *pages, weight, scale)
            rotated, shared = k_rope[:, part.rows], latent[:, part.rows]
            if part.past:
                rotated, shared = (x[None] for x in pool.read(part.table, part.context, latent.dtype))
            keys, values = expand_latent(kv_b(shared), rotated, heads, nope)
            return prefill_attention(torch.cat(own, dim=-1), keys, values, scale)

        return self._each_part(decode, prefill)

    def _each_part(self, decode: Callable[[_Decodes], Tensor], prefill: Callable[[_Chunk], Tensor]) -> Tensor:
        """The results ``[1, heads, some tokens, v_dim]`` of all parts of the step, put in the order of the row."""
        done = [] if self._decodes is None else [(self._decodes.rows, decode(self._decodes))]
        done += [(chunk.rows, prefill(chunk)) for chunk in self._chunks]
        first = done[0][1]
        if len(done) == 1:
            return first
        out = first.new_empty(1, first.shape[1], len(self.slots), first.shape[3])
        for rows, part in done:
            out[:, :, rows] = part
        return out


def _split(batch: PagedBatch) -> tuple[_Decodes | None, list[_Chunk]]:
    """The single tokens of a step and its longer parts; where all are single, no tensor is asked for its numbers.

    Where no row may depend on what is beside it, every token is a single one: it attends as if it were decoded.
    """
    if len(batch.slots) == len(batch.contexts):
        return _Decodes(slice(0, len(batch.slots)), batch.contexts, batch.tables), []
    if rows_are_invariant():
        return _all_single(batch), []
    starts, contexts = batch.query_starts.tolist(), batch.contexts.tolist()
    single, chunks = [], []
    for i, (start, stop) in enumerate(pairwise(starts)):
        if stop - start == 1:
            single.append(i)
        else:
            chunks.append(_Chunk(slice(start, stop), batch.tables[i], contexts[i]))
    if not single:
        return None, chunks
    which = torch.tensor(single, device=batch.tables.device)
    return _Decodes(batch.query_starts[which].long(), batch.contexts[which], batch.tables[which]), chunks


def _all_single(batch: PagedBatch) -> _Decodes:
    starts, ends = batch.query_starts.tolist(), batch.contexts.tolist()
    counts = [stop - start for start, stop in pairwise(starts)]
    contexts = [end - count + i + 1 for end, count in zip(ends, counts, strict=True) for i in range(count)]
    device = batch.tables.device
    tables = batch.tables.repeat_interleave(torch.tensor(counts, device=device), dim=0)
    return _Decodes(slice(0, len(contexts)), torch.tensor(contexts, device=device).to(batch.contexts), tables)


def _absorbs(q_nope: Tensor, context: int, kv_b: Tensor) -> bool:
    heads, tokens, nope = q_nope.shape[1:]
    return prefers_absorbing(tokens, context, nope, kv_b.shape[0] // heads - nope, rank=kv_b.shape[1])


def _refuse_dropout(dropout: float) -> None:
    if dropout:
        raise ValueError(f"paged attention is for inference: dropout must be 0, got {dropout}")
