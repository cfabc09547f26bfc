"""What a layer may ask of attention: it hands over queries, keys and values and never learns where the past lives."""

from typing import Protocol

from torch import Tensor, nn


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
        kv_b: nn.Module,
        *,
        scale: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """Latent attention of the new tokens -> ``[B, H, T, v]``.

        Args:
            q_nope: ``[B, H, T, nope]``; q_rope: ``[B, H, T, rope]``, rotated.
            latent: ``[B, T, rank]``, normed; k_rope: ``[B, T, rope]``, rotated.
            kv_b: the linear layer ``rank -> heads * (nope + v)``; it comes as a module so that an adapter or a
                quantised replacement keeps its effect on either path.
        """
        ...
