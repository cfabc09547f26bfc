"""Weights stored in int8 or int4 with the activations left as they are, and the linear layer that documents them.

int8 has a scale per output row. int4 has a scale, and mostly an offset, per group of input channels: a weight is
``scale * (step - 8) + offset`` with steps 0 to 15. Two steps lie in a byte: of each 64 channels, byte j holds channel j
in its low and channel 32 + j in its high half. Leaves out rounding by what a layer meets (``gptq.py``), and activations
in int8.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

INT4_GROUPS = (32, 64, 128)
RUN = 64
"""Input channels whose steps share a run of 32 bytes."""
AT_ONCE = 1 << 18
"""Numbers that are rounded at once: their fp32 copies fit into a processor's cache, and take no memory to speak of."""


@dataclass(frozen=True)
class Int8Weight:
    """``steps`` int8 ``[..., out, in]`` and ``scales`` fp32 ``[..., out]``."""

    steps: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Int4Weight:
    """``steps`` uint8 ``[..., out, in / 2]``; ``scales`` and ``offsets`` (or None) bf16 ``[..., out, in / group]``."""

    steps: Tensor
    scales: Tensor
    offsets: Tensor | None = None

    @property
    def group(self) -> int:
        """Input channels that share a scale."""
        return 2 * self.steps.shape[-1] // self.scales.shape[-1]


def quantise_int8(weight: Tensor) -> Int8Weight:
    """Round ``[..., out, in]`` to the nearest of 255 steps, the row's largest magnitude being 127 of them."""
    steps, scales = _by_rows(_int8_rows, weight)
    return Int8Weight(steps, scales)


def quantise_int4(weight: Tensor, group: int = 32, offset: bool = True) -> Int4Weight:
    """Round ``[..., out, in]`` to 16 steps per group of ``group`` inputs.

    With an offset the steps run from the group's least number to its greatest. Without one the number of largest
    magnitude becomes step 0, whatever its sign, so that 0 stays exact and all 16 steps are used.

    Raises:
        ValueError: an unknown group, or inputs that are no whole number of groups and of runs of 64.
    """
    _check_groups(weight, group)
    steps, scales, *offsets = _by_rows(lambda rows: _int4_rows(rows, group, offset), weight)
    return Int4Weight(steps, scales, *offsets)


def _by_rows(rounded: Callable[[Tensor], tuple[Tensor, ...]], weight: Tensor) -> tuple[Tensor, ...]:
    """What ``rounded`` makes of all rows of ``[..., out, in]``, a few rows at a time."""
    rows = weight.flatten(0, -2)
    parts = [rounded(part) for part in rows.split(max(1, AT_ONCE // rows.shape[-1]))]
    return tuple(torch.cat(part).unflatten(0, weight.shape[:-1]) for part in zip(*parts, strict=True))


def _int8_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    wide = rows.float()
    scales = wide.abs().amax(dim=-1) / 127
    steps = wide / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    return steps.round().clamp(-127, 127).to(torch.int8), scales


def _int4_rows(rows: Tensor, group: int, offset: bool) -> tuple[Tensor, ...]:
    scales, offsets = int4_parameters(rows, group, offset)
    shift = None if offsets is None else offsets[..., None]
    steps = _pack(rounded_to(rows.float().unflatten(-1, (-1, group)), scales[..., None], shift)[0].flatten(-2))
    return (steps, scales) if offsets is None else (steps, scales, offsets)


def int4_parameters(weight: Tensor, group: int, offset: bool = True) -> tuple[Tensor, Tensor | None]:
    """The scales and offsets of :func:`quantise_int4`, bf16 ``[..., out, in / group]``.

    Raises:
        ValueError: as there.
    """
    _check_groups(weight, group)
    wide = weight.float().unflatten(-1, (-1, group))  # [..., out, groups, group]
    if not offset:
        largest = wide.gather(-1, wide.abs().argmax(dim=-1, keepdim=True))[..., 0]
        return (largest / -8).bfloat16(), None
    least, most = wide.amin(dim=-1), wide.amax(dim=-1)
    scales = ((most - least) / 15).bfloat16()
    return scales, (least + 8 * scales.float()).bfloat16()


def rounded_to(numbers: Tensor, scales: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """The steps, uint8, that are nearest to numbers, and their values; scales and offsets broadcast."""
    wide, shift = scales.float(), 0.0 if offsets is None else offsets.float()
    steps = ((numbers - shift) / torch.where(wide == 0, 1.0, wide)).round().clamp(-8, 7)
    return (steps + 8).to(torch.uint8), steps * wide + shift


def int4_of(steps: Tensor, scales: Tensor, offsets: Tensor | None) -> Int4Weight:
    """The weight of steps 0 to 15, uint8 ``[..., out, in]``."""
    return Int4Weight(_pack(steps), scales, offsets)


def _check_groups(weight: Tensor, group: int) -> None:
    if group not in INT4_GROUPS or weight.shape[-1] % max(group, RUN):
        raise ValueError(
            f"int4 groups must be of {', '.join(map(str, INT4_GROUPS))} inputs and divide them, as must {RUN}; "
            f"got groups of {group} and {weight.shape[-1]} inputs"
        )


def _pack(steps: Tensor) -> Tensor:
    runs = steps.unflatten(-1, (-1, RUN))
    return (runs[..., : RUN // 2] | runs[..., RUN // 2 :] << 4).flatten(-2)


def unpack_steps(packed: Tensor) -> Tensor:
    """Steps 0 to 15, uint8 ``[..., out, in]``, of an :class:`Int4Weight`'s."""
    runs = packed.unflatten(-1, (-1, RUN // 2))
    return torch.cat((runs & 15, runs >> 4), dim=-1).flatten(-2)


def dequantise(weight: Int8Weight | Int4Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight ``[..., out, in]`` that the steps stand for, rounded to ``dtype`` once."""
    if isinstance(weight, Int8Weight):
        return (weight.steps.float() * weight.scales[..., None]).to(dtype)
    steps = unpack_steps(weight.steps).unflatten(-1, (-1, weight.group)).float() - 8
    wide = steps * weight.scales.float()[..., None]
    if weight.offsets is not None:
        wide = wide + weight.offsets.float()[..., None]
    return wide.flatten(-2).to(dtype)
