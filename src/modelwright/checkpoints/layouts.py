"""How another dialect packs several official tensors into one, and how each is cut out again; names are elsewhere.

Every layout is exact in both directions: ``part(join(parts), i)`` is ``parts[i]``, bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    """The order in which the parts of one stored tensor lie in it."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The stored tensor."""
        ...

    def part(self, whole: Tensor, index: int) -> Tensor:
        """Part ``index`` of the stored tensor, as a view where the layout allows one."""
        ...


@dataclass(frozen=True)
class Whole:
    """One tensor, stored as it is."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """See :class:`Layout`."""
        return parts[0]

    def part(self, whole: Tensor, index: int) -> Tensor:
        """See :class:`Layout`."""
        return whole


@dataclass(frozen=True)
class QkvGroups:
    """``w_qkv``: for each of ``groups`` key heads the rows of its ``queries`` query heads, its key's, its value's.

    Weights are ``[heads * head_dim, hidden]`` and biases ``[heads * head_dim]``; both are permuted alike.
    """

    groups: int
    queries: int

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """See :class:`Layout`."""
        return torch.cat([part.unflatten(0, (self.groups, -1)) for part in parts], dim=1).flatten(0, 1)

    def part(self, whole: Tensor, index: int) -> Tensor:
        """See :class:`Layout`."""
        grouped = whole.unflatten(0, (self.groups, -1))  # [groups, (queries + 2) * head_dim, ...]
        head_dim = grouped.shape[1] // (self.queries + 2)
        widths = [self.queries * head_dim, head_dim, head_dim]
        return grouped.split(widths, dim=1)[index].flatten(0, 1)


@dataclass(frozen=True)
class Consecutive:
    """Rows of one part after those of the other: ``attention.w`` of the interleaved decoder layers, ``[q; k; v]``."""

    widths: tuple[int, ...]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """See :class:`Layout`."""
        return torch.cat(list(parts))

    def part(self, whole: Tensor, index: int) -> Tensor:
        """See :class:`Layout`."""
        return whole.split(list(self.widths))[index]


@dataclass(frozen=True)
class Interleaved:
    """``w_gate_hidden``: rows of two parts by turns, gate 0, up 0, gate 1, up 1, ..."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """See :class:`Layout`."""
        return torch.stack(list(parts), dim=1).flatten(0, 1)

    def part(self, whole: Tensor, index: int) -> Tensor:
        """See :class:`Layout`."""
        return whole[index::2]


@dataclass(frozen=True)
class Stacked:
    """One expert's matrix per part, ``[experts, out, in]``, or ``[experts, in, out]`` when ``transposed``."""

    transposed: bool = False

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """See :class:`Layout`."""
        return torch.stack([part.mT for part in parts] if self.transposed else list(parts))

    def part(self, whole: Tensor, index: int) -> Tensor:
        """See :class:`Layout`."""
        return whole[index].mT if self.transposed else whole[index]


@dataclass(frozen=True)
class StackedGateUp:
    """``ffn.w1`` of the grouped product, ``[experts, hidden, 2 * width]``: gate columns, then up columns.

    The parts are gate 0, up 0, gate 1, up 1, ..., each ``[width, hidden]``.
    """

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """See :class:`Layout`."""
        gates, ups = torch.stack(list(parts[::2])), torch.stack(list(parts[1::2]))
        return torch.cat([gates, ups], dim=1).mT

    def part(self, whole: Tensor, index: int) -> Tensor:
        """See :class:`Layout`."""
        return whole[index // 2].mT.chunk(2)[index % 2]


WHOLE = Whole()


@dataclass(frozen=True)
class PackedTensor:
    """A tensor of another dialect, its shape, and the official tensors (names and shapes) that ``layout`` holds."""

    name: str
    shape: tuple[int, ...]
    parts: dict[str, tuple[int, ...]]
    layout: Layout = WHOLE
