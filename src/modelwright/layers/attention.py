"""Multi-head attention with grouped keys (arXiv:2305.13245), projections apart or fused, with or without rotation."""

import torch.nn.functional as F
from torch import Tensor, nn

from modelwright.attention import AttentionBackend
from modelwright.layers.linear import column_linear, row_linear
from modelwright.layers.rope import Rotation
from modelwright.layers.slots import Slot


class GroupedQueryAttention(nn.Module):
    """``[batch, tokens, dim]`` to the same: ``heads`` query heads share ``kv_heads`` key and value heads.

    ``fused`` stores the three projections as one matrix ``[q; k; v]``; on disk they stay apart (:meth:`slots`).
    ``slices`` as in :mod:`modelwright.layers.linear`.
    """

    def __init__(
        self,
        layer: int,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        bias: bool = False,
        dropout: float = 0.0,
        fused: bool = False,
        slices: int = 1,
    ):
        super().__init__()
        self.layer, self.head_dim, self.dropout = layer, head_dim, dropout
        self.widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        self.fused = fused
        if fused:
            self.qkv_proj = column_linear(dim, sum(self.widths), bias, slices)
        else:
            self.q_proj, self.k_proj, self.v_proj = (column_linear(dim, w, bias, slices) for w in self.widths)
        self.o_proj = row_linear(heads * head_dim, dim, bias, slices)

    def forward(self, x: Tensor, rope: Rotation, attention: AttentionBackend) -> Tensor:
        q, k, v = (self._heads(part) for part in self._project(x))  # [batch, heads, tokens, head_dim]
        dropout = self.dropout if self.training else 0.0
        out = attention.attend(self.layer, rope(q), rope(k), v, scale=self.head_dim**-0.5, dropout=dropout)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def slots(self) -> dict[str, Slot]:
        """Where the official q, k and v projections lie inside the fused one; empty when they are apart."""
        if not self.fused:
            return {}
        kinds = ["weight"] if self.qkv_proj.bias is None else ["weight", "bias"]
        table, start = {}, 0
        for name, width in zip("qkv", self.widths, strict=True):
            table |= {f"{name}_proj.{kind}": Slot(f"qkv_proj.{kind}", start, start + width) for kind in kinds}
            start += width
        return table

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.fused:
            return self.qkv_proj(x).split(self.widths, dim=-1)
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class FusedSelfAttention(nn.Module):
    """Self-attention with one merged projection and no positions of its own: ``[batch, tokens, dim]`` to the same.

    ``bias`` is that of the merged projection; the output's always has one. Dropout falls on the attention weights and
    on the output. Whether it is causal is the backend's business.
    """

    def __init__(self, layer: int, dim: int, heads: int, bias: bool = True, dropout: float = 0.0):
        super().__init__()
        self.layer, self.heads, self.dropout = layer, heads, dropout
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attention: AttentionBackend) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        out = attention.attend(self.layer, q, k, v, scale=self.scale, dropout=dropout)
        return F.dropout(self.proj(out.transpose(1, 2).flatten(2)), self.dropout, self.training)
