"""Rotary position embedding as a module: from positions to one rotation that every layer of the pass applies."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelwright.ops.rotary import (
    Rotate,
    dynamic_ntk_theta,
    inverse_frequencies,
    llama3_frequencies,
    rope_table,
    rotate,
    rotate_by_matrix,
    rotate_half_split,
    rotate_interleaved,
    stepped_ntk,
    yarn_frequencies,
    yarn_mscale,
)


@dataclass  # not frozen: of one that is, and that is called, torch 2.11's compiler finds no field
class Rotation:
    """Cosines and sines ``[batch, tokens, dim/2]`` of one pass, and how pairs are laid out."""

    cos: Tensor
    sin: Tensor
    by: Rotate

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate ``[batch, heads, tokens, dim]``, on whichever device it lies."""
        return rotate(x, self.cos.to(x.device), self.sin.to(x.device), self.by)


class RotaryEmbedding(nn.Module):
    """Positions to a :class:`Rotation`; keeps no table, so any position works and nothing depends on earlier calls.

    Args:
        dim: rotated width of a head, even.
        theta: base of the frequencies.
        interleaved: pairs ``(2i, 2i+1)`` instead of ``(i, i + dim/2)``.
        kind: ``default``, ``linear`` (positions / factor), ``dynamic`` and ``dynamic_ntk`` (each row's base grows with
            its largest position beyond ``trained_length``, smoothly or in MindFormers' steps, so a row does not notice
            its neighbours), ``yarn`` or ``llama3``.
        factor, trained_length, beta_fast, beta_slow, mscale, mscale_all_dim, low_freq_factor, high_freq_factor: of the
            extension; see ``ops/rotary.py``.
        dtype: of cosines, sines and the rotation.
        by_matrix: split halves are exchanged by a product instead of slices; the numbers are the same.
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
        low_freq_factor: float = 1.0,
        high_freq_factor: float = 4.0,
        dtype: torch.dtype = torch.float32,
        by_matrix: bool = False,
    ):
        super().__init__()
        self.dim, self.theta, self.kind, self.dtype = dim, theta, kind, dtype
        self.factor, self.trained_length = factor, trained_length
        self.beta_fast, self.beta_slow = beta_fast, beta_slow
        self.low_freq_factor, self.high_freq_factor = low_freq_factor, high_freq_factor
        half_split = rotate_by_matrix if by_matrix else rotate_half_split
        self.rotate: Rotate = rotate_interleaved if interleaved else half_split
        self.scale = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim) if kind == "yarn" else 1.0
        self.softmax_gain = yarn_mscale(factor, mscale_all_dim) ** 2 if kind == "yarn" and mscale_all_dim else 1.0

    def forward(self, positions: Tensor) -> Rotation:
        """Positions ``[batch, tokens]`` (any integers >= 0) to the rotation of that pass."""
        cos, sin = rope_table(positions, self.frequencies(positions), self._gain(positions))
        return Rotation(cos.to(self.dtype), sin.to(self.dtype), self.rotate)

    def frequencies(self, positions: Tensor) -> Tensor:
        """``[dim/2]`` in fp32; the dynamic kinds alone look at the positions and give ``[batch, 1, dim/2]``."""
        dim, theta, trained, device = self.dim, self.theta, self.trained_length, positions.device
        if self.kind == "yarn":
            return yarn_frequencies(dim, theta, self.factor, trained, self.beta_fast, self.beta_slow, device)
        if self.kind == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
            return llama3_frequencies(dim, theta, self.factor, trained, low, high, device)
        if self.kind == "dynamic":
            bases = dynamic_ntk_theta(theta, dim, self.factor, _lengths(positions), trained)
            return inverse_frequencies(dim, bases, device)
        if self.kind == "dynamic_ntk":
            bases, _ = stepped_ntk(theta, dim, _lengths(positions), trained)
            return inverse_frequencies(dim, bases, device)
        plain = inverse_frequencies(dim, theta, device)
        return plain / self.factor if self.kind == "linear" else plain

    def _gain(self, positions: Tensor) -> float | Tensor:
        """What multiplies cosines and sines: a number, or ``[batch, 1, 1]``."""
        if self.kind != "dynamic_ntk":
            return self.scale
        return stepped_ntk(self.theta, self.dim, _lengths(positions), self.trained_length)[1]

    def extra_repr(self) -> str:
        return f"dim={self.dim}, theta={self.theta}, kind={self.kind}, factor={self.factor}"


def _lengths(positions: Tensor) -> Tensor:
    """How many tokens each row reaches: ``[batch, 1, 1]``."""
    return positions.amax(dim=-1)[:, None, None] + 1
