"""Copies of a run's tensors in memory of the host, which a thread writes while the run changes its own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Staging:
    """Room for one copy of each tensor, which is used again by the next checkpoint."""

    def __init__(self) -> None:
        self._room: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are now, in memory of the host; valid until the next call."""
        check_tensors(tensors)
        room, self._room = self._room, {}
        for name, tensor in tensors.items():
            given = room.pop(name, None)
            if given is None or given.shape != tensor.shape or given.dtype != tensor.dtype:
                given = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._room[name] = given.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return dict(self._room)


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors themselves where they are on the host, and copies of the others."""
    check_tensors(tensors)
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def check_tensors(tensors: Mapping[str, Any]) -> None:
    """Raise a TypeError for anything else: what is no tensor belongs to the facts, as JSON."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
