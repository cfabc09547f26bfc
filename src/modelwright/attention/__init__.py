"""The attention backends: where keys and values live and how queries meet them."""

from modelwright.attention.dense import DenseAttention
from modelwright.attention.packed import PackedAttention, attention_over
from modelwright.attention.paged import PagedAttention
from modelwright.attention.pool import PagedBatch, PagePool
from modelwright.attention.protocol import AttentionBackend

__all__ = [
    "AttentionBackend",
    "DenseAttention",
    "PackedAttention",
    "PagePool",
    "PagedAttention",
    "PagedBatch",
    "attention_over",
]
