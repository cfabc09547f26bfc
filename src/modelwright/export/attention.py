"""The attention backend of a traced pass: the past comes in as tensors, the mask is whole, nothing depends on lengths.

Leaves out the fused kernel, whose choice among several ways would be baked into the graph.
"""

import torch
from torch import Tensor

from modelwright.attention.protocol import Projection
from modelwright.ops.attention import masked_scores
from modelwright.ops.latent import absorbed_attention


class GraphAttention:
    """One pass over a past of any length, zero included.

    Args:
        sees: boolean, broadcasts to ``[batch, heads, tokens, past + tokens]``; True where a query may look. Every
            query must see something.
        past: each layer's two cached tensors, ``[batch, heads, past, width]``.
        softmax_dtype: the type of the softmax.
        upcast: take the products in fp32 too.
    """

    def __init__(
        self,
        sees: Tensor,
        past: list[tuple[Tensor, Tensor]],
        softmax_dtype: torch.dtype = torch.float32,
        upcast: bool = False,
    ):
        self.sees = sees
        self.present = list(past)
        self.softmax_dtype = softmax_dtype
        self.upcast = upcast

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: float = 0.0) -> Tensor:
        """See :class:`AttentionBackend`; query heads that share a key head meet it by broadcasting, not by copies."""
        k, v = self._extend(layer, k, v)
        dtype = q.dtype
        if self.upcast:
            q, k, v = q.float(), k.float(), v.float()
        q = (q * scale).unflatten(1, (k.shape[1], -1))  # [batch, kv_heads, groups, tokens, width]
        scores = masked_scores(q @ k.unsqueeze(2).transpose(-1, -2), self.sees.unsqueeze(1), self.softmax_dtype)
        weights = scores.softmax(dim=-1).to(q.dtype)
        # Heads are brought together in contiguous memory: torch 2.11 loses track of a view whose strides hold a length.
        out = (weights @ v.unsqueeze(2)).permute(0, 3, 1, 2, 4).contiguous()  # [batch, tokens, kv_heads, groups, width]
        return out.flatten(2, 3).transpose(1, 2).to(dtype)

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
        """See :class:`AttentionBackend`; always absorbed, so that the latent cache is never expanded."""
        assert kv_b_weight is not None  # exporting refuses other projections
        k_rope, latent = self._extend(layer, k_rope.unsqueeze(1), latent.unsqueeze(1))
        k_rope, latent = k_rope.squeeze(1), latent.squeeze(1)
        return absorbed_attention(q_nope, q_rope, latent, k_rope, kv_b_weight, self.sees, scale, dropout)

    def _extend(self, layer: int, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's past with the new tokens behind it, which is kept as its present."""
        past = self.present[layer]
        self.present[layer] = torch.cat((past[0], first), dim=2), torch.cat((past[1], second), dim=2)
        return self.present[layer]


def visible(mask: Tensor | None, tokens: int, past: int, device: torch.device) -> Tensor:
    """``[batch or 1, 1, tokens, past + tokens]``: causal, without the keys that ``mask`` ``[batch, keys]`` has as 0.

    A query that would see nothing (padding's own) sees everything, as in :class:`DenseAttention`.
    """
    own = torch.arange(tokens, device=device) + past
    sees = (torch.arange(past + tokens, device=device) <= own[:, None])[None, None]
    if mask is None:
        return sees
    # How many keys each query may look at, [batch, tokens]. Picked by index: symbolic shapes lose count of a slice.
    seen = mask.long().cumsum(dim=-1).index_select(1, own)
    return (sees & mask.bool()[:, None, None]) | (seen == 0)[:, None, :, None]
