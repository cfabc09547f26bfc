"""What a layer may ask of attention: it hands over queries, keys and values and never learns where the past lives."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

Projection = Callable[[Tensor], Tensor]


class AttentionBackend(Protocol):
    """One forward pass's way to attend, shared by all layers; ``layer`` is the layer's index."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: float = 0.0) -> Tensor:
        """q ``[B, Hq, T, Dk]``, k ``[B, Hk, T, Dk]``, v ``[B, Hk, T, Dv]`` of the new tokens -> ``[B, Hq, T, Dv]``."""
        ...

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
        """Latent attention of the new tokens -> ``[B, H, T, v]``.

        Args:
            q_nope: ``[B, H, T, nope]``; q_rope: ``[B, H, T, rope]``, rotated.
            latent: ``[B, T, rank]``, normed; k_rope: ``[B, T, rope]``, rotated.
            kv_b: the projection of latents, ``[..., rank] -> [..., heads * (nope + v)]``, to be called.
            kv_b_weight: its weight ``[heads * (nope + v), rank]`` where that says all that it does, so that it may be
                absorbed; None where an adapter, a hook or another kind of layer has its effect only if it is called.
        """
        ...
