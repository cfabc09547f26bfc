"""Activations that wait in host memory between forward and backward, and come back some layers ahead.

On a GPU both ways are copied on a stream of their own, beside what is computed; on a CPU a copy stands for both. What a
layer saves forms a :class:`Store`. The backward pass meets stores in the order opposite to theirs: as soon as it asks
for anything of one, those of as many layers before it as ``prefetch`` says are fetched.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn


class Host(NamedTuple):
    """A tensor on the host, and how it lay where it came from.

    Attributes:
        values: dense, and one of those that were only repeated.
        strides: in elements, those of the tensor: products of rows that lie apart may be rounded differently from those
            of dense ones, so that it comes back with the rows as far apart as they were.
        shape: with what was repeated.
        stream: on which it is copied; on a CPU none.
    """

    values: Tensor
    device: torch.device
    strides: tuple[int, ...]
    shape: torch.Size
    stream: Any

    def laid_out(self) -> Tensor:
        """On its device, as it lay there; a copy is begun where that is elsewhere."""
        if self.values.device == self.device and self.values.stride() == self.strides:
            return self.values.expand(self.shape)
        tensor = torch.empty_strided(self.values.shape, self.strides, dtype=self.values.dtype, device=self.device)
        return tensor.copy_(self.values, non_blocking=True).expand(self.shape)


class Store:
    """What one layer saved in one pass, on the host and, once it was fetched, back on its device.

    Args:
        layer: its number.
        before: the stores of the same pass that were filled earlier, in their order; what saved a tensor holds its own.
    """

    def __init__(self, layer: int, before: Sequence["ReferenceType[Store]"]):
        self.layer, self.before = layer, before
        self._hosts: list[Host] = []
        self._fetched: dict[int, tuple[Tensor, Any]] = {}
        self.is_fetched = False

    def put(self, tensor: Tensor, stream: Any) -> int:
        """Begin to copy a tensor to the host; its place here."""
        once = tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]
        host = torch.empty_like(once, device="cpu", pin_memory=tensor.is_cuda)
        if stream is None:
            host.copy_(once)
        else:
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
            with torch.cuda.stream(stream):
                host.copy_(once, non_blocking=True)
            tensor.record_stream(stream)
        self._hosts.append(Host(host, tensor.device, once.stride(), tensor.shape, stream))
        return len(self._hosts) - 1

    def fetch(self) -> None:
        """Begin to copy all of it back."""
        self.is_fetched = True
        for place in range(len(self._hosts)):
            self._fetched[place] = self._copied(place)

    def take(self, place: int, ahead: int) -> Tensor:
        """A tensor on its device again, for work that is issued now; what is next to be asked for is fetched.

        Args:
            ahead: stores before this one that are to be on their way.
        """
        for store in (self, *(each() for each in reversed(self.before[-ahead:]))):
            if store is not None and not store.is_fetched:
                store.fetch()
        tensor, done = self._fetched.pop(place, None) or self._copied(place)  # again, where a graph is kept
        if done is not None:
            now = torch.cuda.current_stream(tensor.device)
            now.wait_event(done)
            tensor.record_stream(now)
        return tensor

    def _copied(self, place: int) -> tuple[Tensor, Any]:
        host = self._hosts[place]
        if host.stream is None:
            return host.laid_out(), None
        with torch.cuda.stream(host.stream):
            return host.laid_out(), host.stream.record_event()


class Swap:
    """The stores of a pass, in the order in which they are filled.

    Args:
        prefetch: how many layers ahead they come back.
    """

    def __init__(self, prefetch: int):
        self.prefetch = prefetch
        self._stores: list[ReferenceType[Store]] = []
        self._streams: dict[torch.device, Any] = {}
        self._is_backward = False

    def layer(self, number: int) -> Callable[..., Any]:
        """``(function, *inputs) -> output`` of a layer, whose backward pass finds what it needs on the host."""

        def swapped(function: Callable[..., Any], *inputs: Any) -> Any:
            with self._hooks(number):
                return function(*inputs)

        return swapped

    def module(self, number: int, module: nn.Module) -> None:
        """Let what ``module``, of layer ``number``, saves wait on the host, and nothing else of its layer."""
        contexts: list[Any] = []

        def enter(_module: nn.Module, _inputs: Any) -> None:
            contexts.append(self._hooks(number))
            contexts[-1].__enter__()

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            contexts.pop().__exit__(None, None, None)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)

    def _hooks(self, number: int) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(partial(self._put, number), self._take)

    def _put(self, number: int, tensor: Tensor) -> Any:
        if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            return tensor
        if not tensor.is_floating_point():
            return tensor
        store = self._store(number)
        return store, store.put(tensor, self._stream(tensor.device))

    def _take(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        self._is_backward = True
        store, place = kept
        return store.take(place, self.prefetch)

    def _store(self, number: int) -> Store:
        """Where a layer's tensors go: of a pass that begins anew after a backward pass, the first."""
        if torch._C._current_graph_task_id() != -1:  # computed again within the backward pass, which needs it at once
            return Store(number, ())
        if self._is_backward:
            self._stores, self._is_backward = [], False
        store = self._stores[-1]() if self._stores else None
        if store is None or store.layer != number:
            store = Store(number, self._stores[-self.prefetch :])
            self._stores.append(ref(store))
        return store

    def _stream(self, device: torch.device) -> Any:
        if device.type != "cuda":
            return None
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]
