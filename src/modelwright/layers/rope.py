"""Rotary position embedding as a module: from positions to one rotation that every layer of the pass applies."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from modelwright.ops.rotary import (
    dynamic_ntk_theta,
    inverse_frequencies,
    rope_table,
    rotate_half_split,
    rotate_interleaved,
    yarn_frequencies,
    yarn_mscale,
)


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines ``[batch, tokens, dim/2]`` of one pass, and how pairs are laid out."""

    cos: Tensor
    sin: Tensor
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate ``[batch, heads, tokens, dim]``, on whichever device it lies."""
        return self.rotate(x, self.cos.to(x.device), self.sin.to(x.device))


class RotaryEmbedding(nn.Module):
    """Positions to a :class:`Rotation`; keeps no table, so any position works and nothing depends on earlier calls.

    Args:
        dim: rotated width of a head, even.
        theta: base of the frequencies.
        interleaved: pairs ``(2i, 2i+1)`` instead of ``(i, i + dim/2)``.
        kind: ``default``, ``linear`` (positions / factor), ``dynamic`` (NTK: each row's base grows with its largest
            position beyond ``trained_length``, so a row does not notice its neighbours) or ``yarn``.
        factor, trained_length, beta_fast, beta_slow, mscale, mscale_all_dim: of the extension; see ``ops/rotary.py``.
    """

    def __init__(
        self,
        dim: int,
        theta: float,
        interleaved: bool = False,
        kind: str = "default",
        factor: float = 1.0,
        trained_length: int = 0,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        mscale: float = 1.0,
        mscale_all_dim: float = 0.0,
    ):
        super().__init__()
        self.dim, self.theta, self.kind = dim, theta, kind
        self.factor, self.trained_length = factor, trained_length
        self.beta_fast, self.beta_slow = beta_fast, beta_slow
        self.rotate = rotate_interleaved if interleaved else rotate_half_split
        self.scale = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim) if kind == "yarn" else 1.0
        self.softmax_gain = yarn_mscale(factor, mscale_all_dim) ** 2 if kind == "yarn" and mscale_all_dim else 1.0

    def forward(self, positions: Tensor) -> Rotation:
        """Positions ``[batch, tokens]`` (any integers >= 0) to the rotation of that pass."""
        cos, sin = rope_table(positions, self.frequencies(positions), self.scale)
        return Rotation(cos, sin, self.rotate)

    def frequencies(self, positions: Tensor) -> Tensor:
        """``[dim/2]`` in fp32; the dynamic kind alone looks at the positions and gives ``[batch, 1, dim/2]``."""
        device = positions.device
        if self.kind == "yarn":
            return yarn_frequencies(
                self.dim, self.theta, self.factor, self.trained_length, self.beta_fast, self.beta_slow, device
            )
        if self.kind == "dynamic":
            length = positions.amax(dim=-1)[:, None, None] + 1
            theta = dynamic_ntk_theta(self.theta, self.dim, self.factor, length, self.trained_length)
            return inverse_frequencies(self.dim, theta, device)
        plain = inverse_frequencies(self.dim, self.theta, device)
        return plain / self.factor if self.kind == "linear" else plain

    def extra_repr(self) -> str:
        return f"dim={self.dim}, theta={self.theta}, kind={self.kind}, factor={self.factor}"
