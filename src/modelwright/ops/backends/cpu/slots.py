"""Attention over slots by the compiled kernel: the memory, the checks and the pointers; the arithmetic is in C++."""

import math

import torch
from torch import Tensor

from modelwright.ops.backends.cpu.build import available, call
from modelwright.ops.backends.cpu.layouts import ATTEND_SLOTS, LANES, SLOTS

TYPES = (torch.float32, torch.bfloat16)


def serves_slots(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel attends to slots there, for queries of that type."""
    return device.type == "cpu" and dtype in TYPES and available()


class KernelSlots:
    """What ``ops/slots.py`` describes, laid out for the kernel.

    Keys are ``[batch, heads, blocks, head_dim, LANES]``, 16 slots a block; values ``[batch, heads, slots, width]``,
    where width is the head_dim rounded up to a multiple of 16.
    """

    def __init__(self, batch: int, heads: int, dim: int, slots: int, scale: float, dtype: torch.dtype):
        self.keys = torch.zeros(batch, heads, -(-slots // LANES), dim, LANES, dtype=dtype)
        self.values = torch.zeros(batch, heads, slots, -(-dim // LANES) * LANES, dtype=dtype)
        self._width = heads * dim
        self._packed = SLOTS.pack(
            batch,
            heads,
            dim,
            self.values.shape[-1],
            slots,
            self.keys.data_ptr(),
            self.values.data_ptr(),
            scale * math.log2(math.e),
        )

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """The first ``tokens`` slots: keys and values ``[batch, heads, tokens, head_dim]``."""
        self.values[:, :, : values.shape[2], : values.shape[3]] = values
        for place in range(keys.shape[2]):
            self.keys[:, :, place // LANES, :, place % LANES] = keys[:, :, place]

    def attend(self, joined: Tensor, known: int) -> Tensor:
        """Queries, keys and values of one token a row, ``[batch, 3 * heads * head_dim]``, at slot ``known``."""
        joined = joined.contiguous()
        out = joined.new_empty(joined.shape[0], self._width)
        call(
            ATTEND_SLOTS,
            self._packed,
            joined.dtype == torch.bfloat16,
            self.keys.dtype == torch.bfloat16,
            joined.data_ptr(),
            known,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out
