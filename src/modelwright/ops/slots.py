"""Attention of one new token a row over all before it, whose keys and values lie in memory made beforehand.

For rows that start together and grow together, as pictures do. Rows that come and go have pages (``paged.py``).
"""

from typing import Protocol

import torch
from torch import Tensor

from modelwright.ops.backends import cpu as kernels


class Slots(Protocol):
    """Keys and values of ``batch`` rows, with room for as many tokens as were asked for."""

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Keep those of the first tokens, each ``[batch, heads, tokens, head_dim]``."""
        ...

    def attend(self, joined: Tensor, known: int) -> Tensor:
        """Keep a token's own at slot ``known``, then let its query meet the slots up to it.

        Args:
            joined: ``[batch, 3 * heads * head_dim]``: the queries of all heads, their keys, their values.
            known: how many tokens are kept already.

        Returns:
            ``[batch, heads * head_dim]`` in the type of ``joined``.
        """
        ...


def make_slots(
    batch: int,
    heads: int,
    dim: int,
    slots: int,
    scale: float,
    kept: torch.dtype,
    computed: torch.dtype,
    device: torch.device,
) -> Slots:
    """The fastest that there are for queries of type ``computed``.

    Args:
        dim: width of a head.
        slots: tokens that there is room for.
        scale: what products of queries and keys are multiplied by.
        kept: type of what is kept, and without the kernel also that of the products: ``computed`` or fp32.
    """
    if kernels.serves_slots(device, computed) and kept in (torch.float32, computed):
        return kernels.KernelSlots(batch, heads, dim, slots, scale, kept)
    return TorchSlots(batch, heads, dim, slots, scale, kept, device)


class TorchSlots:
    """:class:`Slots` by torch's products.

    Keys are ``[batch * heads, head_dim, slots]``: a query meets them as rows, which every kernel of torch reads fast.
    Values are ``[batch * heads, slots, head_dim]``.
    """

    def __init__(
        self, batch: int, heads: int, dim: int, slots: int, scale: float, kept: torch.dtype, device: torch.device
    ):
        rows = batch * heads
        self.keys = torch.zeros(rows, dim, slots, dtype=kept, device=device)
        self.values = torch.zeros(rows, slots, dim, dtype=kept, device=device)
        self.unread = torch.zeros(1, dtype=kept, device=device)  # what baddbmm would add to, times beta = 0
        self.scale = scale

    def fill(self, keys: Tensor, values: Tensor) -> None:
        tokens = keys.shape[2]
        self.keys[:, :, :tokens] = keys.flatten(0, 1).transpose(1, 2)
        self.values[:, :tokens] = values.flatten(0, 1)

    def attend(self, joined: Tensor, known: int) -> Tensor:
        rows, dim, _ = self.keys.shape
        q, k, v = (part.reshape(rows, dim) for part in joined.chunk(3, dim=-1))
        self.keys.select(2, known).copy_(k)
        self.values.select(1, known).copy_(v)
        keys, values = self.keys.narrow(2, 0, known + 1), self.values.narrow(1, 0, known + 1)
        q = q[:, None].to(keys.dtype)
        scores = torch.baddbmm(self.unread, q, keys, beta=0, alpha=self.scale)  # [rows, 1, known + 1]
        return torch.bmm(scores.softmax(dim=-1), values).view(joined.shape[0], -1).to(joined.dtype)
