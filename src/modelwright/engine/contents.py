"""`Contents`, what weights were worth at one moment, as far as a look says it that takes less than reading them.

Three things are looked at. Torch counts the changes of a tensor, but for those through ``.data``, by fused optimizers
and by other libraries. So some numbers of each weight in host memory are compared too, and an optimizer of torch's says
itself that it has stepped. What changes few numbers of a weight past all three is not seen.
"""

import ctypes
from collections.abc import Iterable
from operator import attrgetter
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

_VERSION = attrgetter("_version")
_COMPARED = 1 << 17
"""Bytes of all weights together that are compared."""
_PIECES = 3
"""A weight that is not compared as a whole is at its beginning, in the middle and at its end."""
_watching: "WeakSet[Contents]" = WeakSet()


class Contents:
    """What some tensors are worth, to be asked again whether they still are.

    Args:
        tensors: those that hold numbers themselves, wherever they lie. They are kept, and the memory that they lie in
            is not: who gives a tensor other memory gives the old one free.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        self._tensors = list(tensors)
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._on_host = [tensor for tensor in self._tensors if _extent(tensor)]
        self._addresses = list(map(Tensor.data_ptr, self._on_host))
        self._pieces = [piece for tensor in self._on_host for piece in _pieces(tensor, _COMPARED // len(self._on_host))]
        self._ids = set(map(id, self._tensors))
        self._stepped = False
        self._then = self._now()
        _watching.add(self)

    def hold(self) -> bool:
        """Whether they are, as far as can be seen."""
        return not self._stepped and self._now() == self._then

    def notice(self, optimizer: Any) -> None:
        """Take note that an optimizer has stepped."""
        groups = optimizer.param_groups
        self._stepped |= any(id(weight) in self._ids for group in groups for weight in group["params"])

    def _now(self) -> tuple[list[int], bytes | None]:
        storages = list(map(Tensor.untyped_storage, self._on_host))  # nobody frees them while their bytes are read
        same = list(map(Tensor.data_ptr, self._on_host)) == self._addresses
        sample = b"".join(self._pieces) if same else None
        del storages
        return list(map(_VERSION, self._counted)), sample


def _extent(tensor: Tensor) -> int:
    """How many bytes of host memory a tensor spans from its first number on; 0 for one that lies elsewhere."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or not tensor.numel() or not tensor.data_ptr():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.element_size()


def _pieces(tensor: Tensor, most: int) -> list[Any]:
    """Views of a tensor's memory, of about ``most`` bytes together."""
    start, extent = tensor.data_ptr(), _extent(tensor)
    if extent <= most:
        return [(ctypes.c_ubyte * extent).from_address(start)]
    piece = most // _PIECES
    places = [(extent - piece) * number // (_PIECES - 1) for number in range(_PIECES)]
    return [(ctypes.c_ubyte * piece).from_address(start + place) for place in places]


def _tell(optimizer: Any, *_: Any) -> None:
    for contents in list(_watching):
        contents.notice(optimizer)


register_optimizer_step_post_hook(_tell)
