"""What paged attention reads and writes: one layer's pool of pages, and where the tokens of a step stand in it.

Leaves out who owns which page (the engine's block allocator) and the attention itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from modelwright.ops import host_memory
from modelwright.ops.page_writes import write_pages
from modelwright.ops.pages import Pages, copy_pages, move_pages, read_pages, slots_of


@dataclass(frozen=True)
class PagePool:
    """One layer's pages, of ``page_size`` tokens each.

    ``keys`` and ``values`` have a row per head. In a latent pool ``keys`` are the rotated keys and ``values`` the
    latents, without heads: two views of one tensor of ``rank + rope`` numbers a token. ``stored`` are the tensors
    ``[pages, ...]`` that both are made of, scales included. A pool that is ``pinned`` lies in host memory from which a
    GPU reads, and to which it writes, while the host goes on.
    """

    keys: Pages
    values: Pages
    stored: tuple[Tensor, ...]

    @classmethod
    def grouped(
        cls,
        pages: int,
        page_size: int,
        kv_heads: int,
        k_dim: int,
        v_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        pinned: bool = False,
    ) -> Self:
        """Room for keys and values of ``kv_heads`` heads; ``torch.int8`` keeps a scale per token and head."""
        shape = (pages, page_size, kv_heads)
        keys, values = (_pages((*shape, width), shape, dtype, device, pinned) for width in (k_dim, v_dim))
        return cls(keys, values, (*_tensors(keys), *_tensors(values)))

    @classmethod
    def latent(
        cls,
        pages: int,
        page_size: int,
        rank: int,
        rope: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        pinned: bool = False,
    ) -> Self:
        """Room for latents and rotated keys; ``torch.int8`` keeps a scale for each of the two per token."""
        whole = _pages((pages, page_size, rank + rope), (pages, page_size, 2), dtype, device, pinned)
        scales = (None, None) if whole.scales is None else whole.scales.unbind(-1)
        keys, values = Pages(whole.rows[..., rank:], scales[1]), Pages(whole.rows[..., :rank], scales[0])
        return cls(keys, values, _tensors(whole))

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        return self.keys.page_size

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store new tokens, see :func:`modelwright.ops.page_writes.write_pages`."""
        write_pages(self.keys, slots, keys)
        write_pages(self.values, slots, values)

    def read(self, table: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The first ``count`` keys and values of a sequence, see :func:`modelwright.ops.pages.read_pages`."""
        return read_pages(self.keys, table, count, dtype), read_pages(self.values, table, count, dtype)

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole pages, ``(from, to)`` each; all are read before any is written."""
        copy_pages(self.keys, copies)
        copy_pages(self.values, copies)

    def move(self, target: "PagePool", moves: Sequence[tuple[int, int]]) -> None:
        """Copy whole pages into those of a pool elsewhere, see :func:`modelwright.ops.pages.move_pages`."""
        for mine, theirs in zip(self.stored, target.stored, strict=True):
            move_pages(mine, theirs, moves)


def _pages(
    shape: tuple[int, ...],
    vectors: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str,
    pinned: bool,
) -> Pages:
    scales = _zeros(vectors, torch.float32, device, pinned) if dtype == torch.int8 else None
    return Pages(_zeros(shape, dtype, device, pinned), scales)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str, pinned: bool) -> Tensor:
    """On Linux large ones take memory as they are written over, unless they are pinned."""
    if pinned:
        return torch.zeros(shape, dtype=dtype, device=device, pin_memory=True)
    return host_memory.zeros(shape, dtype, device)


def _tensors(pages: Pages) -> tuple[Tensor, ...]:
    return (pages.rows,) if pages.scales is None else (pages.rows, pages.scales)


@dataclass(frozen=True)
class PagedBatch:
    """Where the packed tokens of one step stand; a step has one token of each sequence at least.

    Args:
        query_starts: ``[sequences + 1]``, where each sequence's tokens begin in the row.
        contexts: ``[sequences]``, how many keys each has with its new tokens.
        tables: ``[sequences, pages at most]``, each one's pages in order; the rest of a line is not looked at.
        slots: ``[tokens]``, int64: ``page * page_size + place``, where each new token's keys go.
    """

    query_starts: Tensor
    contexts: Tensor
    tables: Tensor
    slots: Tensor

    @classmethod
    def of(
        cls,
        counts: Sequence[int],
        contexts: Sequence[int],
        tables: Sequence[Sequence[int]],
        page_size: int,
        device: torch.device | str = "cpu",
    ) -> Self:
        """From plain numbers: each sequence's new tokens, its keys with them, and its pages.

        Raises:
            ValueError: a sequence has no new tokens, more new tokens than keys, or pages for fewer keys.
        """
        starts, slots = [0], []
        for count, context, table in zip(counts, contexts, tables, strict=True):
            if not 0 < count <= context <= len(table) * page_size:
                raise ValueError(
                    f"new tokens ({count}) must be at least 1 and at most the keys ({context}), "
                    f"and those at most {page_size} for each of {len(table)} pages"
                )
            starts.append(starts[-1] + count)
            slots += slots_of(table, page_size, context - count, context)
        longest = max(map(len, tables), default=0)
        lines = [[*table, *[0] * (longest - len(table))] for table in tables]
        kinds = {"device": device, "dtype": torch.int32}
        return cls(
            torch.tensor(starts, **kinds),
            torch.tensor(list(contexts), **kinds),
            torch.tensor(lines, **kinds).view(len(tables), longest),
            torch.tensor(slots, dtype=torch.int64, device=device),
        )
