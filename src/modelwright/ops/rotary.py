"""Rotary position embedding (RoFormer, arXiv:2104.09864): frequencies, their extensions, and the two rotations.

Frequencies and tables are fp32; whoever calls may round the tables, and decides which extension a model uses.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.dispatch import only_numbers
from modelwright.ops.invariant import one_by_one, rows_are_invariant
from modelwright.ops.products import are_trained, plain_linear

Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``rotate_half_split``, ``rotate_by_matrix`` or ``rotate_interleaved``: one signature, two layouts of the pairs."""
_TABLES = (torch.float32, torch.bfloat16)


def inverse_frequencies(dim: int, theta: float | Tensor, device: torch.device | None = None) -> Tensor:
    """``theta^(-2i/dim)`` for each pair i, fp32: ``[dim/2]``, or ``[..., dim/2]`` for bases ``[..., 1]``."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    return 1.0 / (theta**exponents)


def dynamic_ntk_theta(theta: float, dim: int, factor: float, length: Tensor, trained_length: int) -> Tensor:
    """The base that serves each ``length`` (a tensor of any shape, counted in tokens); ``theta`` up to the trained one.

    "NTK-aware" scaling as in transformers' ``dynamic`` kind: it has no paper.
    """
    stretch = (factor * length / trained_length - (factor - 1)).clamp(min=1.0)
    return theta * stretch ** (dim / (dim - 2))


def stepped_ntk(theta: float, dim: int, length: Tensor, trained_length: int) -> tuple[Tensor, Tensor]:
    """MindFormers' dynamic NTK: the base that serves each ``length``, and the gain of cosines and sines.

    With ``L = max(length, trained_length)`` the base grows in steps, ``theta * (2^c - 1)^(dim/(dim-2))`` for
    ``c = ceil(log2(L / trained_length) + 1)``; the gain is ``0.1 * ln(L / trained_length) + 1``. It has no paper.
    """
    ratio = (length / trained_length).clamp(min=1.0)
    steps = (ratio.log2() + 1).ceil()
    return theta * (2**steps - 1) ** (dim / (dim - 2)), 0.1 * ratio.log() + 1.0


def llama3_frequencies(
    dim: int,
    theta: float,
    factor: float,
    trained_length: int,
    low_freq_factor: float,
    high_freq_factor: float,
    device: torch.device | None = None,
) -> Tensor:
    """Llama 3.1's blend (arXiv:2407.21783): wavelengths beyond the trained context are divided by ``factor``.

    A pair that turns more than ``high_freq_factor`` times within ``trained_length`` tokens keeps its frequency, one
    that turns less than ``low_freq_factor`` times divides it, and between the two they are blended linearly by the
    number of turns. ``[dim/2]``, fp32.
    """
    plain = inverse_frequencies(dim, theta, device)
    turns = trained_length / (2 * math.pi / plain)
    width = high_freq_factor - low_freq_factor
    keep = ((turns - low_freq_factor) / width).clamp(0, 1) if width else (turns >= high_freq_factor).float()
    return (1 - keep) * plain / factor + keep * plain


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature ``0.1 * mscale * ln(factor) + 1`` (arXiv:2309.00071, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_frequencies(
    dim: int,
    theta: float,
    factor: float,
    trained_length: int,
    beta_fast: float,
    beta_slow: float,
    device: torch.device | None = None,
) -> Tensor:
    """YaRN's blend (arXiv:2309.00071, section 3.2): fast pairs keep their frequency, slow ones divide it by ``factor``.

    Fast is a pair that turns more than ``beta_fast`` times within ``trained_length`` tokens, slow one that turns less
    than ``beta_slow`` times; between the two the pairs are blended linearly by their index. ``[dim/2]``, fp32.
    """

    def pair_with_rotations(rotations: float) -> float:
        return dim * math.log(trained_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_with_rotations(beta_fast)), 0)
    high = min(math.ceil(pair_with_rotations(beta_slow)), dim - 1)
    width = max(high - low, 0.001)
    slowness = ((torch.arange(dim // 2, dtype=torch.float32, device=device) - low) / width).clamp(0, 1)
    plain = inverse_frequencies(dim, theta, device)
    return plain * (1 - slowness) + plain / factor * slowness


def rope_table(positions: Tensor, frequencies: Tensor, scale: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines for ``positions`` ``[batch, tokens]``: two fp32 tensors ``[batch, tokens, dim/2]``."""
    angles = positions[..., None].float() * frequencies
    if rows_are_invariant():
        rows = angles.reshape(-1, angles.shape[-1])
        cos, sin = (one_by_one(function, rows).view(angles.shape) for function in (torch.cos, torch.sin))
        return cos * scale, sin * scale
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor, by: Rotate) -> Tensor:
    """``by(x, cos, sin)``, in one pass by the kernel where that takes it, and its gradients: tables in fp32 or bf16."""
    if only_numbers(x, cos, sin):
        if _fits(x, cos, sin):
            return kernels.rotate(x, cos, sin, by is rotate_interleaved)
    elif not (cos.requires_grad or sin.requires_grad) and are_trained(x, cos, sin) and _fits(x, cos, sin):
        return _Rotated.apply(x, cos, sin, by is rotate_interleaved)  # pyright: ignore[reportReturnType]
    return by(x, cos, sin)


def _fits(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether the kernel takes these, of which it is given pointers: a table for all rows, or one for each."""
    batch, _, tokens, dim = x.shape
    tables = cos.dtype in _TABLES and cos.shape == sin.shape and cos.shape[1:] == (tokens, dim // 2)
    return tables and cos.shape[0] in (1, batch) and kernels.serves_rows(x, cos, sin)


class _Rotated(torch.autograd.Function):
    """With gradients by the kernel: what they are turned by is the angle back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return kernels.rotate(x, cos, sin, interleaved)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        gradient = gradient if gradient.stride(-1) == 1 else gradient.contiguous()
        turned = rotate(gradient, cos, -sin, rotate_half_split)  # which may have gradients itself
        if ctx.interleaved:
            turned = torch.stack(turned.chunk(2, dim=-1), dim=-1).flatten(-2)
        return turned, None, None, None


def rotate_half_split(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs ``(i, i + dim/2)`` of ``x`` ``[batch, heads, tokens, dim]`` (the Llama convention).

    Computed in the tables' type, here and in the other rotations; the result has that of ``x``.
    """
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return _rotated(first, second, cos, sin).to(x.dtype)


def rotate_by_matrix(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """:func:`rotate_half_split` with the halves exchanged by a product: ``x * cos + (x @ [[0, I], [-I, 0]]) * sin``.

    The same numbers: every sum of the product has one term. For devices that multiply faster than they copy.
    """
    wide = x.to(cos.dtype)
    identity = torch.eye(x.shape[-1] // 2, dtype=cos.dtype, device=x.device)
    nothing = torch.zeros_like(identity)
    exchange = torch.cat((torch.cat((nothing, identity), dim=1), torch.cat((-identity, nothing), dim=1)))
    cos, sin = (torch.cat((table, table), dim=-1).unsqueeze(1) for table in (cos, sin))
    with torch.autocast(x.device.type, enabled=False):
        exchanged = plain_linear(wide, exchange.t())
    return (wide * cos + exchanged * sin).to(x.dtype)


def rotate_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs ``(2i, 2i + 1)`` of ``x`` ``[batch, heads, tokens, dim]`` (the DeepSeek-V2 convention).

    The result holds all first members, then all second members: the order in which the official code caches keys.
    Queries and keys are reordered alike, so their products do not notice.
    """
    pairs = x.to(cos.dtype).unflatten(-1, (-1, 2))
    return _rotated(pairs[..., 0], pairs[..., 1], cos, sin).to(x.dtype)


def _rotated(first: Tensor, second: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # one table for all heads: [batch, 1, tokens, dim/2]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
