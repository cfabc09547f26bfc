"""Memory of the host for large tensors that are read again and again: huge pages, where Linux has them on request.

Reading from pages of 2 MiB asks the processor's table of pages 512 times less often than from those of 4 KiB. Leaves
out who needs the memory; small tensors, other devices and other systems get torch's own.
"""

import mmap
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

ON_REQUEST = hasattr(mmap, "MADV_HUGEPAGE")
"""Whether this system can be asked for huge pages."""
LARGE = 2 << 20
"""Bytes of a huge page, from which on a tensor gets a mapping of its own."""


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A tensor to be filled; as any other but for its storage, which cannot be resized. Freed with its last view."""
    mapped = _map(shape, dtype, device)
    return torch.empty(shape, dtype=dtype, device=device) if mapped is None else mapped


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """As :func:`empty`, zeros; where they are mapped they take memory as they are written over."""
    mapped = _map(shape, dtype, device)
    return torch.zeros(shape, dtype=dtype, device=device) if mapped is None else mapped


def _map(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor | None:
    """Zeros of a mapping of their own; None where torch's memory is as good, or the system refuses."""
    nbytes = prod(shape) * dtype.itemsize
    if not ON_REQUEST or nbytes < LARGE or torch.device(device).type != "cpu":
        return None
    try:
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # too little memory, which torch says in its own words, or a kernel without huge pages
        return None
    return torch.frombuffer(memory, dtype=dtype).view(shape)
