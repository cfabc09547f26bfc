"""A cache that lives in host memory: a pass moves its new entries out, and the layer ahead is brought in meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class OffloadedCache(DynamicCache):
    """Keys and values of all layers on the host; on the device, only the layer in use and the one being fetched.

    :meth:`update` copies the new tokens out and nothing else, and starts fetching the next layer's past on a stream of
    its own. Between passes nothing is on the device, so a cache that is reordered or cropped for beams holds no stale
    copy. On a CPU there is nowhere to move to and the copies are plain.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.fetched: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Append to one layer and return all of it, on the device: keys and values ``[batch, heads, tokens, dim]``."""
        past = self._take(layer_idx)
        super().update(self.to_host(key_states), self.to_host(value_states), layer_idx)
        if layer_idx + 1 < len(self.layers):
            self._prefetch(layer_idx + 1)
        if past is None:
            return key_states, value_states
        return torch.cat((past[0], key_states), dim=-2), torch.cat((past[1], value_states), dim=-2)

    def to_host(self, new: Tensor) -> Tensor:
        """New entries on their way out."""
        return new.to("cpu")

    def to_device(self, stored: Tensor) -> Tensor:
        """A layer's past on its way in."""
        return stored.to(self.device, non_blocking=True)

    def _take(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """This layer's past on the device, waiting for it if it is still on its way."""
        if layer >= len(self.layers) or not self.get_seq_length(layer):
            return None
        if layer not in self.fetched:
            self._prefetch(layer)
        keys, values = self.fetched.pop(layer)
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for part in (keys, values):
                part.record_stream(current)  # or the other stream may reuse its memory too early
        return keys, values

    def _prefetch(self, layer: int) -> None:
        stored = self.layers[layer]
        if not isinstance(stored, DynamicLayer) or stored.keys is None or stored.values is None:
            return
        with self._beside():
            self.fetched[layer] = self.to_device(stored.keys), self.to_device(stored.values)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        if self.stream is None:
            yield
            return
        with torch.cuda.stream(self.stream):
            yield
