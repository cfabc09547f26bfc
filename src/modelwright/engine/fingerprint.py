"""`Fingerprint`, what a model's passes are made of at one moment, to see whether they still are.

It says nothing of what weights are worth: a pass that was captured reads them where they lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Fingerprint:
    """The parts of a model, their hooks, where their numbers lie, and how many threads compute with them.

    Attributes:
        children: the modules inside each part that has any, in its own dictionary and as they were.
        hooks: the dictionaries of each part's hooks, and the numbers of those that there were.
        tensors: the dictionaries of parameters and buffers of each part, and each tensor and its place as it was.
        threads: of torch's operations on the CPU.
    """

    children: tuple[tuple[dict[str, Any], tuple[Any, ...]], ...]
    hooks: tuple[tuple[dict[int, Any], ...], list[int]]
    tensors: tuple[tuple[dict[str, Any], ...], list[tuple[int, int]]]
    threads: int

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """As it is now."""
        parts = list(model.modules())
        children = tuple((part._modules, tuple(part._modules.values())) for part in parts if part._modules)
        hooks = tuple(chain.from_iterable((part._forward_hooks, part._forward_pre_hooks) for part in parts))
        own = tuple(owner for part in parts for owner in (part._parameters, part._buffers) if owner)
        return cls(children, (hooks, list(chain.from_iterable(hooks))), (own, _places(own)), torch.get_num_threads())

    def holds(self) -> bool:
        """Whether it still is."""
        if torch.get_num_threads() != self.threads or any(tuple(now.values()) != then for now, then in self.children):
            return False
        hooks, numbers = self.hooks
        own, places = self.tensors
        return list(chain.from_iterable(hooks)) == numbers and _places(own) == places


def _places(owners: tuple[Mapping[str, Tensor | None], ...]) -> list[tuple[int, int]]:
    tensors = chain.from_iterable(owner.values() for owner in owners)
    return [(id(tensor), tensor.data_ptr()) for tensor in tensors if tensor is not None]
