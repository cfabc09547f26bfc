"""Attention over packed documents: each row holds several, and no token looks beyond its own.

Leaves out how documents are found (``ops/packing.py``), and how keys are kept and multiplied (``dense.py``).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from modelwright.attention.dense import DenseAttention
from modelwright.attention.protocol import AttentionBackend, Projection
from modelwright.ops.dispatch import numbers_are_known
from modelwright.ops.documents import Spans, attention_by_document
from modelwright.ops.packing import document_mask, document_spans


class PackedAttention:
    """The backend of one forward pass over documents that share rows.

    Without a past and without padding each document attends alone, and no mask is built. Over a past, with padding, and
    while a graph is made, when nobody knows yet where documents end, a mask over all keys says what is seen.

    Args:
        documents: ``[batch, past + tokens]``, the number of each token's document.
        mask: ``[batch, past + tokens]`` with 0 where a key is padding; None when none is.
        cache, past, fused, softmax_dtype: as for :class:`DenseAttention`.

    Attributes:
        spans: where documents lie that attend alone, each by ``product``; None where a mask says what is seen.
    """

    def __init__(
        self,
        documents: Tensor,
        mask: Tensor | None = None,
        cache: Any = None,
        past: int = 0,
        fused: bool = True,
        softmax_dtype: torch.dtype = torch.float32,
    ):
        self.spans: Spans | None = None
        if mask is None and past == 0 and numbers_are_known(documents):
            self.spans = document_spans(documents)
            self._dense = DenseAttention(None, cache, fused=fused, softmax_dtype=softmax_dtype)
            self.product = self._dense.product
            self._dense.product = partial(attention_by_document, self.product, self.spans)
            return
        sees = document_mask(documents, past)
        if mask is not None:
            sees = sees & mask[:, None, None, : documents.shape[1]].bool().to(sees.device)
        self._dense = DenseAttention(sees, cache, past, fused=fused, softmax_dtype=softmax_dtype)

    def settle(self, tokens: int, device: torch.device) -> None:
        """See :meth:`DenseAttention.settle`."""
        self._dense.settle(tokens, device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: float = 0.0) -> Tensor:
        """See :class:`AttentionBackend`."""
        return self._dense.attend(layer, q, k, v, scale=scale, dropout=dropout)

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
        """See :class:`AttentionBackend`."""
        return self._dense.attend_latent(
            layer, q_nope, q_rope, latent, k_rope, kv_b, kv_b_weight=kv_b_weight, scale=scale, dropout=dropout
        )


def attention_over(
    documents: Tensor | None,
    mask: Tensor | None,
    cache: Any = None,
    past: int | Tensor = 0,
    fused: bool = True,
    softmax_dtype: torch.dtype = torch.float32,
) -> AttentionBackend:
    """Packed attention where rows hold several ``documents``, unless a 4-D mask is the whole rule; else dense."""
    if documents is not None and (mask is None or mask.dim() == 2):
        assert isinstance(past, int)  # a past that is not known yet has no documents
        return PackedAttention(documents, mask, cache, past, fused, softmax_dtype)
    return DenseAttention(mask, cache, past, fused=fused, softmax_dtype=softmax_dtype)
