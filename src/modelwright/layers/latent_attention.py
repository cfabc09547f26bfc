"""Multi-head latent attention (arXiv:2405.04434, section 2.1): a token's keys and values live in one small vector."""

from torch import Tensor, nn

from modelwright.attention import AttentionBackend
from modelwright.layers.bare import bare_weight
from modelwright.layers.linear import Linear, column_linear, row_linear
from modelwright.layers.norm import RMSNorm
from modelwright.layers.rope import Rotation


class LatentAttention(nn.Module):
    """``[batch, tokens, dim]`` to the same; parameter names are the official ones.

    Args:
        heads: number of heads; per head, ``nope`` and ``rope`` are the widths of the unrotated and the rotated part of
            queries and keys, ``v_dim`` that of the value.
        kv_rank: width of the latent; q_rank: width of the query's own latent, None for a direct projection.
        bias: of the projections into the latents and of the output.
        softmax_gain: multiplies ``(nope + rope)^-1/2`` (YaRN's temperature).
        slices: as in :mod:`modelwright.layers.linear`; the projections into and out of the key-value latent stay whole.
    """

    def __init__(
        self,
        layer: int,
        dim: int,
        heads: int,
        nope: int,
        rope: int,
        v_dim: int,
        kv_rank: int,
        q_rank: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
        softmax_gain: float = 1.0,
        slices: int = 1,
    ):
        super().__init__()
        self.layer_idx, self.heads, self.nope, self.rope, self.kv_rank = layer, heads, nope, rope, kv_rank
        self.scale = (nope + rope) ** -0.5 * softmax_gain
        self.dropout = dropout
        if q_rank is None:
            self.q_proj = column_linear(dim, heads * (nope + rope), slices=slices)
        else:
            self.q_a_proj = Linear(dim, q_rank, bias)
            self.q_a_layernorm = RMSNorm(q_rank)
            self.q_b_proj = column_linear(q_rank, heads * (nope + rope), slices=slices)
        self.q_rank = q_rank
        self.kv_a_proj_with_mqa = Linear(dim, kv_rank + rope, bias)
        self.kv_a_layernorm = RMSNorm(kv_rank)
        self.kv_b_proj = Linear(kv_rank, heads * (nope + v_dim), bias=False)
        self.o_proj = row_linear(heads * v_dim, dim, bias, slices)

    def forward(self, x: Tensor, rope: Rotation, attention: AttentionBackend) -> Tensor:
        q = self._query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [batch, heads, tokens, nope + rope]
        q_nope, q_rope = q.split([self.nope, self.rope], dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.kv_rank, self.rope], dim=-1)
        out = attention.attend_latent(
            self.layer_idx,
            q_nope,
            rope(q_rope),
            self.kv_a_layernorm(latent),
            rope(k_rope.unsqueeze(1)).squeeze(1),
            self.kv_b_proj,
            kv_b_weight=bare_weight(self.kv_b_proj),
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _query(self, x: Tensor) -> Tensor:
        if self.q_rank is None:
            return self.q_proj(x)
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
