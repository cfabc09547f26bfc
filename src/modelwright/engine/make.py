"""`Make`, what a model is made of at one moment, to see whether it still is; it says nothing of weights' values."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

from torch import Tensor, nn


@dataclass(frozen=True)
class Make:
    """The parts of a model, their hooks, and where their numbers lie.

    Attributes:
        children: the modules inside each part that has any, in its own dictionary and as they were.
        hooks: the dictionaries of each part's hooks, and how many there were in all.
        tensors: the dictionaries of parameters and buffers of each part, and each tensor and its place as it was.
    """

    children: tuple[tuple[dict[str, Any], tuple[Any, ...]], ...]
    hooks: tuple[tuple[dict[int, Any], ...], int]
    tensors: tuple[tuple[dict[str, Any], ...], list[tuple[int, int]]]

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """As it is now."""
        parts = list(model.modules())
        children = tuple((part._modules, tuple(part._modules.values())) for part in parts if part._modules)
        hooks = tuple(chain.from_iterable((part._forward_hooks, part._forward_pre_hooks) for part in parts))
        own = tuple(owner for part in parts for owner in (part._parameters, part._buffers) if owner)
        return cls(children, (hooks, sum(map(len, hooks))), (own, _places(own)))

    def holds(self) -> bool:
        """Whether it still is."""
        if any(tuple(now.values()) != then for now, then in self.children):
            return False
        hooks, count = self.hooks
        own, places = self.tensors
        return sum(map(len, hooks)) == count and _places(own) == places


def _places(owners: tuple[Mapping[str, Tensor | None], ...]) -> list[tuple[int, int]]:
    tensors = chain.from_iterable(owner.values() for owner in owners)
    return [(id(tensor), tensor.data_ptr()) for tensor in tensors if tensor is not None]
