"""Attention in fp32 whatever the model's type, around another backend; it keeps nothing itself."""

import torch
from torch import Tensor

from modelwright.attention.protocol import AttentionBackend, Projection


class UpcastAttention:
    """`inner` with queries, keys and values in fp32 and autocast off; results have the type of the values.

    Half precision then neither rounds nor overflows scores (see :func:`modelwright.ops.attention.upcast_attention`).
    """

    def __init__(self, inner: AttentionBackend):
        self._inner = inner

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: float = 0.0) -> Tensor:
        """See :class:`AttentionBackend`."""
        with torch.autocast(q.device.type, enabled=False):
            out = self._inner.attend(layer, q.float(), k.float(), v.float(), scale=scale, dropout=dropout)
        return out.to(v.dtype)

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
        """Latent attention is not upcast by any family.

        Raises:
            ValueError: always.
        """
        raise ValueError("latent attention cannot be upcast: its projection has the type of the model")
