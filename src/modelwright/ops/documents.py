"""Attention of rows that hold several documents, one document after another: no score between two is ever computed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Spans = Sequence[Sequence[tuple[int, int]]]
"""Each row's documents as ``(start, stop)`` of its tokens, in order."""


def attention_by_document(
    product: Callable[..., Tensor],
    spans: Spans,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float = 0.0,
    causal: bool = True,
) -> Tensor:
    """``product`` (see ``ops/attention.py``) over each document alone, causal; memory and work grow with the longest.

    Args:
        spans: of all tokens of q. The keys are those of the same tokens, or longer, where a cache has unused slots.
        mask, causal: of the whole row; that every token sees itself and the earlier ones of its document says it all.
    """
    rows = []
    for row, documents in enumerate(spans):
        parts = []
        for start, stop in documents:
            own = (slice(row, row + 1), slice(None), slice(start, stop))
            parts.append(product(q[own], k[own], v[own], None, scale, dropout, True))
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows)
