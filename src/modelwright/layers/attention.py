"""Multi-head attention with grouped keys (arXiv:2305.13245), projections apart or fused, with or without rotation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelwright.attention import AttentionBackend
from modelwright.layers.joined import joined
from modelwright.layers.linear import Linear, column_linear, row_linear
from modelwright.layers.rope import Rotation
from modelwright.layers.slots import Slot, own_tensors


class GroupedQueryAttention(nn.Module):
    """``[batch, tokens, dim]`` to the same: ``heads`` query heads share ``kv_heads`` key and value heads.

    Args:
        bias: of the three projections; out_bias: of the output's, by default the same.
        fused: store the three projections as one matrix; on disk they stay apart (:meth:`slots`).
        grouped: with ``fused``, the rows are ``[q; k; v]`` of one key head after another (MindFormers' layout, which
            slices across ranks), instead of ``[q; k; v]`` of all heads.
        slices, compute: as in :mod:`modelwright.layers.linear`.
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
        out_bias: bool | None = None,
        grouped: bool = False,
        compute: torch.dtype | None = None,
    ):
        super().__init__()
        self.layer_idx, self.head_dim, self.dropout = layer, head_dim, dropout
        self.widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        self.fused, self.groups = fused, kv_heads if grouped else 1
        if fused:
            self.qkv_proj = column_linear(dim, sum(self.widths), bias, slices, compute)
        else:
            self.q_proj, self.k_proj, self.v_proj = (column_linear(dim, w, bias, slices, compute) for w in self.widths)
        self.o_proj = row_linear(heads * head_dim, dim, bias if out_bias is None else out_bias, slices, compute)

    def forward(self, x: Tensor, rope: Rotation, attention: AttentionBackend) -> Tensor:
        q, k, v = (self._heads(part) for part in self._project(x))  # [batch, heads, tokens, head_dim]
        dropout = self.dropout if self.training else 0.0
        out = attention.attend(self.layer_idx, rope(q), rope(k), v, scale=self.head_dim**-0.5, dropout=dropout)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def slots(self) -> dict[str, Slot]:
        """Where the official q, k and v projections lie inside the fused one; empty when they are apart."""
        if not self.fused:
            return {}
        kinds = own_tensors(self.qkv_proj)  # weight and bias, or the parts of a stored weight
        period = sum(self.widths) // self.groups if self.groups > 1 else 0
        table, start = {}, 0
        for name, width in zip("qkv", self.widths, strict=True):
            stop = start + width // self.groups
            for kind in kinds:
                table[f"{name}_proj.{kind}"] = Slot(f"qkv_proj.{kind}", start, stop, runs=self.groups, period=period)
            start = stop
        return table

    def _project(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values ``[batch, tokens, their heads * head_dim]``."""
        if not self.fused:
            return joined(x, self.q_proj, self.k_proj, self.v_proj)
        by_group = self.qkv_proj(x).unflatten(-1, (self.groups, -1))
        return [part.flatten(-2) for part in by_group.split([width // self.groups for width in self.widths], dim=-1)]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class FusedSelfAttention(nn.Module):
    """Self-attention with one merged projection and no positions of its own: ``[batch, tokens, dim]`` to the same.

    ``bias`` is that of the merged projection; the output's always has one. Dropout falls on the attention weights and
    on the output. Whether it is causal is the backend's business.
    """

    def __init__(self, layer: int, dim: int, heads: int, bias: bool = True, dropout: float = 0.0):
        super().__init__()
        self.layer_idx, self.heads, self.dropout = layer, heads, dropout
        self.scale = (dim // heads) ** -0.5
        self.qkv = Linear(dim, 3 * dim, bias)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, attention: AttentionBackend) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        out = attention.attend(self.layer_idx, q, k, v, scale=self.scale, dropout=dropout)
        return F.dropout(self.proj(out.transpose(1, 2).flatten(2)), self.dropout, self.training)
