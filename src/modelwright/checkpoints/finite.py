"""Weights that are numbers: a NaN or an infinity is refused with the tensor's name, in a file and after a conversion.

The least and the largest of a tensor tell: one pass over it, at the speed of memory.
"""

from pathlib import Path

import torch
from torch import Tensor

from modelwright.errors import CheckpointError


def check_finite(name: str, tensor: Tensor, file: Path) -> None:
    """Raise a :class:`CheckpointError` where a tensor that was read from ``file`` holds a NaN or an infinity."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    least, largest = (bound.item() for bound in tensor.aminmax())
    if least != least:
        raise CheckpointError(f"{name} in {file.name} holds NaN: the checkpoint is damaged, or its training diverged")
    if largest == float("inf") or least == -float("inf"):
        raise CheckpointError(f"{name} in {file.name} holds an infinity: the checkpoint is damaged, or overflowed")


def check_range(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Raise a :class:`CheckpointError` where a finite number of a tensor becomes infinite in the type ``dtype``."""
    if torch.finfo(dtype).max >= torch.finfo(tensor.dtype).max or not tensor.numel():
        return
    extremes = torch.stack(tensor.aminmax())
    if not extremes.to(dtype).isfinite().all():
        kind, wide = str(dtype).removeprefix("torch."), str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{name} reaches {extremes.abs().max().item():g}, and {kind} ends at {torch.finfo(dtype).max:g}; "
            f"keep {wide}{', or take bfloat16' if dtype == torch.float16 else ''}"
        )
