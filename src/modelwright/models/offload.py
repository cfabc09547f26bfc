"""A cache that lives in host memory: a pass moves its new entries out, and the layer ahead is brought in meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import DynamicCache


class OffloadedCache(DynamicCache):
    """Keys and values of all layers on the host; on the device, only the layer in use and the one being fetched.

    :meth:`update` copies the new tokens out and nothing else, and starts fetching the next layer's past on a stream of
    its own. On a CPU there is nowhere to move to and the copies are plain.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.fetched: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Append to one layer and return all of it on the device: keys and values ``[batch, heads, past + tokens, dim]``."""
        past = self._take(layer_idx)
        super().update(key_states.to("cpu"), value_states.to("cpu"), layer_idx)
        self._prefetch(layer_idx + 1 if layer_idx + 1 < len(self.layers) else 0)
        if past is None:
            return key_states, value_states
        return torch.cat((past[0], key_states), dim=-2), torch.cat((past[1], value_states), dim=-2)

    def _take(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """This layer's past on the device, waiting for it if it is still on its way."""
        if layer >= len(self.layers) or not self.layers[layer].get_seq_length():
            return None
        if layer not in self.fetched:
            self._prefetch(layer)
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return self.fetched.pop(layer)

    def _prefetch(self, layer: int) -> None:
        stored = self.layers[layer]
        if layer in self.fetched or not stored.get_seq_length():
            return
        with self._beside():
            self.fetched[layer] = tuple(
                part.to(self.device, non_blocking=True) for part in (stored.keys, stored.values)
            )

    @contextmanager
    def _beside(self) -> Iterator[None]:
        if self.stream is None:
            yield
            return
        with torch.cuda.stream(self.stream):
            yield
