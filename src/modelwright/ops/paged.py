"""Attention over keys and values kept in pages: written out per sequence, and the faster ways that give the same.

Queries of all sequences are packed in one row, ``starts`` ``[sequences + 1]`` says where each one's begin, and
``contexts`` ``[sequences]`` how many keys it has in the end: its queries are the last of its tokens. Leaves out how
pages are stored (``ops/pages.py``) and the kernels (``backends/``), which gathered products
stand in for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modelwright.ops.attention import attention, causal_mask, fused_attention, reference_attention
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends import triton as gpu_kernels
from modelwright.ops.dispatch import only_numbers
from modelwright.ops.invariant import rows_are_invariant
from modelwright.ops.latent import absorbed_attention, latent_to_values, query_to_latent
from modelwright.ops.pages import Pages, read_pages

INVARIANT_SHARE = 512
"""Keys that the decode kernel sums up together, where no result may depend on what is beside it."""


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
    """One query per sequence, ``[sequences, heads, k_dim]`` -> ``[sequences, heads, v_dim]``; compiled if it can be."""
    if only_numbers(q):
        if kernels.serves_decode(q, keys, values):
            return kernels.decode([q], [keys], values, contexts, tables, scale, _share())
        if not rows_are_invariant() and gpu_kernels.serves_attention(q, keys, values):
            return gpu_kernels.decode(q, keys, values, contexts, tables, scale)
    return gathered_attention(q, keys, values, contexts, tables, scale)


def decode_latent_attention(
    q_latent: Tensor, q_rope: Tensor, latent: Pages, k_rope: Pages, contexts: Tensor, tables: Tensor, scale: float
) -> Tensor:
    """One query per sequence, ``[sequences, heads, rank]`` and its rotated part -> ``[sequences, heads, rank]``."""
    if only_numbers(q_latent, q_rope):
        if kernels.serves_decode(q_latent, latent, k_rope):
            return kernels.decode([q_latent, q_rope], [latent, k_rope], latent, contexts, tables, scale, _share())
        if not rows_are_invariant() and gpu_kernels.serves_attention(q_latent, latent, k_rope):
            return gpu_kernels.decode(q_rope, k_rope, latent, contexts, tables, scale, q_latent)
    return gathered_latent_attention(q_latent, q_rope, latent, k_rope, contexts, tables, scale)


def _share() -> int:
    """The keys that are summed up together, where no result may depend on what is beside it."""
    return INVARIANT_SHARE if rows_are_invariant() else 0


def gathered_attention(q: Tensor, keys: Pages, values: Pages, contexts: Tensor, tables: Tensor, scale: float) -> Tensor:
    """:func:`decode_attention` by torch alone: each sequence's pages are gathered."""
    parts = []
    for query, table, context in zip(q, tables, contexts.tolist(), strict=True):
        k, v = (read_pages(kind, table, context, q.dtype).transpose(0, 1)[None] for kind in (keys, values))
        parts.append(fused_attention(query[None, :, None], k, v, None, scale)[0, :, 0])
    return torch.stack(parts) if parts else q.new_empty(0, q.shape[1], values.width)


def gathered_latent_attention(
    q_latent: Tensor, q_rope: Tensor, latent: Pages, k_rope: Pages, contexts: Tensor, tables: Tensor, scale: float
) -> Tensor:
    """:func:`decode_latent_attention` by torch alone: each sequence's latents are gathered, and not expanded.

    Scores are taken in fp32, as the kernels take them: rounded to bf16 they would be off by a 256th of themselves.
    """
    wide, parts = torch.promote_types(q_latent.dtype, torch.float32), []
    queries = zip(q_latent.to(wide), q_rope.to(wide), tables, contexts.tolist(), strict=True)
    for inner, rotated, table, context in queries:
        past, past_rope = (read_pages(kind, table, context, wide) for kind in (latent, k_rope))
        # The past stands on the left: kernels for few columns read a long left side once (see ops/latent.py).
        scores = (past @ inner.T + past_rope @ rotated.T).T * scale  # [heads, keys]
        parts.append((scores.softmax(dim=-1) @ past).to(q_latent.dtype))
    return torch.stack(parts) if parts else torch.empty_like(q_latent)


def continued_attention(q: Tensor, keys: Pages, values: Pages, context: int, table: Tensor, scale: float) -> Tensor:
    """:func:`prefill_attention` of the last tokens of a sequence whose keys are all in its pages."""
    if only_numbers(q) and gpu_kernels.serves_attention(q, keys, values):
        where = (0, q.shape[2]), (context,), table[None]
        out = gpu_kernels.ragged(q[0].transpose(0, 1), keys, values, *where, scale)  # [tokens, heads, v_dim]
        return out.transpose(0, 1)[None]
    k, v = (read_pages(kind, table, context, q.dtype).transpose(0, 1)[None] for kind in (keys, values))
    return prefill_attention(q, k, v, scale)


def continued_latent_attention(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Pages,
    k_rope: Pages,
    context: int,
    table: Tensor,
    kv_b: Tensor,
    scale: float,
) -> Tensor:
    """:func:`continued_attention` in latent space, the projection absorbed; q_nope and kv_b as in ``ops/latent.py``."""
    tokens, nope = q_nope.shape[2:]
    if only_numbers(q_nope, q_rope) and gpu_kernels.serves_attention(q_nope, latent, k_rope):
        inner, rotated = query_to_latent(q_nope, kv_b)[0].transpose(0, 1), q_rope[0].transpose(0, 1)
        where = (0, tokens), (context,), table[None]
        out = gpu_kernels.ragged(rotated, k_rope, latent, *where, scale, inner)  # [tokens, heads, rank]
        return latent_to_values(out.transpose(0, 1)[None], kv_b, nope)
    past, past_rope = (read_pages(kind, table, context, q_nope.dtype)[None] for kind in (latent, k_rope))
    sees = causal_mask(tokens, context, context - tokens, q_nope.device)
    return absorbed_attention(q_nope, q_rope, past, past_rope, kv_b, sees, scale)


def prefill_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The last tokens of one sequence over all its keys: q ``[1, heads, tokens, k_dim]``, k and v as many or more."""
    tokens, past = q.shape[2], k.shape[2] - q.shape[2]
    if past == 0 or tokens == 1:
        return attention(q, k, v, None, scale, causal=past == 0)
    if only_numbers(q, k, v) and kernels.serves_prefill(q, k, v):
        return kernels.prefill(q, k, v, scale)
    return attention(q, k, v, causal_mask(tokens, k.shape[2], past, q.device), scale)
