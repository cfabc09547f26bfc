"""A cache in host memory: a pass moves the pages of its new entries out, and the layer ahead is brought in meanwhile.

For inference: no gradient passes through it. The pages are the engine's (``attention/pool.py``), dealt to the rows of a
batch in order; who owns which needs no books here. It stays beside transformers' ``DynamicCache(offloading=True)``
because that one needs CUDA, copies the whole past out and back for each chunk, and before 5.24 may read a layer on the
host before the copy of it there has ended.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from modelwright.attention import PagePool

PAGE = 16
"""Tokens in a page."""


@dataclass(frozen=True)
class RowPages:
    """A pool of pages, ``pages`` of them for each row of a batch, one row after the other."""

    pool: PagePool
    batch: int
    pages: int

    @classmethod
    def like(cls, keys: Tensor, values: Tensor, tokens: int, device: torch.device, pinned: bool = False) -> Self:
        """Room for ``tokens`` of each row; ``keys`` and ``values`` ``[batch, heads, any, dim]`` say the rest."""
        batch, heads, _, width = keys.shape
        pages = -(-tokens // PAGE)
        sizes = (batch * pages, PAGE, heads, width, values.shape[-1])
        return cls(PagePool.grouped(*sizes, keys.dtype, device, pinned), batch, pages)

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Store ``[batch, heads, tokens, dim]`` of each as the tokens from ``start`` on."""
        device = keys.device
        rows = torch.arange(self.batch, device=device)[:, None] * self.pages * PAGE
        slots = (rows + torch.arange(start, start + keys.shape[2], device=device)).flatten()
        self.pool.write(slots, keys.transpose(1, 2).flatten(0, 1), values.transpose(1, 2).flatten(0, 1))

    def read(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Views ``[batch, heads, tokens, dim]`` of the first tokens."""
        shape = (self.batch, self.pages * PAGE)
        keys, values = (part.rows.view(*shape, *part.rows.shape[2:]) for part in (self.pool.keys, self.pool.values))
        return keys[:, :tokens].transpose(1, 2), values[:, :tokens].transpose(1, 2)

    def move(self, target: "RowPages", start: int, stop: int) -> None:
        """Copy the pages that hold tokens ``start`` to ``stop - 1`` to their places in ``target``."""
        pages = range(start // PAGE, -(-stop // PAGE))
        moves = [(row * self.pages + page, row * target.pages + page) for row in range(self.batch) for page in pages]
        self.pool.move(target.pool, moves)


class HostLayer(DynamicLayer):
    """One layer's past; ``keys`` and ``values`` ``[batch, heads, tokens, dim]`` are views of its pages.

    What the base class puts in their place (reordered beams, cropped tokens) is brought into pages at the next use.
    """

    def __init__(self, pinned: bool):
        super().__init__()
        self.pinned = pinned
        self._rows: RowPages | None = None
        self._views: tuple[Tensor, Tensor] | None = None

    def rows(self, keys: Tensor, values: Tensor, tokens: int) -> RowPages:
        """The pages, with room for ``tokens`` such as ``keys`` and ``values``, and all that is known in them."""
        known, rows = self.get_seq_length(), self._rows
        owned = self._views is not None and self.keys is self._views[0] and self.values is self._views[1]
        if rows is None or not owned or rows.pages * PAGE < tokens:
            room = tokens if rows is None else max(tokens, 2 * known)
            self._rows = RowPages.like(keys, values, room, torch.device("cpu"), self.pinned)
            if known:
                assert self.keys is not None and self.values is not None  # or nothing would be known
                self._rows.write(0, self.keys, self.values)
            self.show(known)
        assert self._rows is not None
        return self._rows

    def show(self, tokens: int) -> None:
        """So many tokens are in the pages."""
        assert self._rows is not None
        self._views = self.keys, self.values = self._rows.read(tokens)
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True


class OffloadedCache(DynamicCache):
    """Keys and values of all layers on the host; on the device, only the layer in use and the one being fetched.

    :meth:`update` moves out the pages that hold new tokens and nothing else, and starts fetching the next layer's past
    on a stream of its own. Between passes nothing is on the device, so a cache that is reordered or cropped for beams
    holds no stale copy. On a CPU there is nowhere to move to and the copies are plain.
    """

    layers: list[HostLayer]

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.fetched: dict[int, RowPages] = {}

    @torch.no_grad()
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Append to one layer and return all of it, on the device: keys and values ``[batch, heads, tokens, dim]``."""
        while len(self.layers) <= layer_idx:
            self.layers.append(HostLayer(pinned=self.stream is not None))
        layer, past = self.layers[layer_idx], self.layers[layer_idx].get_seq_length()
        known = past + key_states.shape[2]
        here = self._take(layer_idx, key_states, value_states)
        here.write(past, key_states, value_states)
        if layer_idx + 1 < len(self.layers):
            self._prefetch(layer_idx + 1, key_states, value_states)
        self.move(here, layer.rows(key_states, value_states, known), past, known)
        if self.stream is not None:
            torch.cuda.current_stream(self.device).synchronize()  # before anybody reads the host's pages
        layer.show(known)
        return here.read(known)

    def move(self, source: RowPages, target: RowPages, start: int, stop: int) -> None:
        """Tokens on their way in or out, by whole pages."""
        source.move(target, start, stop)

    def _take(self, layer: int, keys: Tensor, values: Tensor) -> RowPages:
        """This layer's past on the device, waiting for it if it is still on its way, with room for what is new."""
        if layer not in self.fetched:
            self._prefetch(layer, keys, values)
        here = self.fetched.pop(layer)
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for stored in here.pool.stored:
                stored.record_stream(current)  # or the other stream may reuse its memory too early
        return here

    def _prefetch(self, layer: int, keys: Tensor, values: Tensor) -> None:
        past = self.layers[layer].get_seq_length()
        tokens = past + keys.shape[2]
        with self._beside():
            here = self.fetched[layer] = RowPages.like(keys, values, tokens, self.device)
            if past:
                self.move(self.layers[layer].rows(keys, values, tokens), here, 0, past)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        if self.stream is None:
            yield
            return
        with torch.cuda.stream(self.stream):
            yield
