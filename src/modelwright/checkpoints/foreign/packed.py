"""Integers of a few bits that lie one after another in words of 32 bits, and the numbers that they are steps of."""

import torch
from torch import Tensor

PACKED = (2, 3, 4, 5, 6, 8)
"""Bits of one integer."""


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """Integers from the lowest bit of the first word on: words ``[..., n]`` of 4 bytes -> ``[..., count]`` bytes."""
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        octets = words.contiguous().view(torch.uint8)[..., None]
        return (octets >> shifts & (1 << bits) - 1).flatten(-2)[..., :count]
    runs = words.view(torch.int32).long().bitwise_and(0xFFFFFFFF).unflatten(-1, (-1, bits))  # 32 integers of each
    begins = torch.arange(32) * bits
    first = begins // 32
    both = runs[..., first] | runs[..., (first + 1).clamp(max=bits - 1)] << 32
    return (both >> begins % 32 & (1 << bits) - 1).flatten(-2)[..., :count].to(torch.uint8)


def numbers(steps: Tensor, scales: Tensor, zeros: Tensor | None, group_of: Tensor | None = None) -> Tensor:
    """``(step - zero) * scale`` in fp32: steps ``[out, in]``, scales and zeros ``[out, groups]``.

    ``group_of`` ``[in]`` says which group an input is of; by default as many that lie together are of each.
    """
    made = steps.to(torch.float32)
    if group_of is not None:
        if zeros is not None:
            made -= zeros.to(torch.float32)[:, group_of]
        return made.mul_(scales.to(torch.float32)[:, group_of])
    groups = made.unflatten(1, (scales.shape[1], -1))
    if zeros is not None:
        groups -= zeros.to(torch.float32)[..., None]
    groups *= scales.to(torch.float32)[..., None]
    return made
