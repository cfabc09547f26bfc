"""`Fingerprint`, what the Python of a model's passes depends on at one moment, to see whether it still is so.

It says nothing of what weights are worth: a pass that was captured reads them where they lie. Asking again compares a
copy of every module's attributes with what they now are, which for 300 modules takes a quarter of a millisecond.
"""

from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, type)
"""Types whose values never change, so that equal ones are as good as the same."""
_WITHOUT_STATE = (*_VALUES, Tensor, FunctionType, BuiltinFunctionType, ModuleType)


class _Same:
    """Equal to one object only, whatever that object would say of others."""

    __slots__ = ("object",)

    def __init__(self, object: Any):
        self.object = object

    def __eq__(self, other: Any) -> bool:
        return other is self.object

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Fingerprint:
    """The parts of a model and everything else that decides which calls a pass of it makes.

    Attributes:
        kept: a copy of the attributes of each module, and of each object that they name, as they were: children,
            parameters, hooks and plain values, lists and dictionaries with all that is in them.
        live: the same attributes as they are, each an object's own dictionary.
        empty: the containers among them that were empty, most of which are for hooks; `kept` has these very ones,
            which is faster to compare than a copy of each.
        places: each tensor, and where and how it lay.
        forwards: the classes of the modules and the `forward` of each.
        surroundings: what is asked of torch rather than of the model.
    """

    kept: list[dict[str, Any]]
    live: list[dict[str, Any]]
    empty: list[Any]
    places: tuple[list[Tensor], list[tuple[Any, ...]]]
    forwards: list[tuple[type, Any]]
    surroundings: tuple[Any, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """As it is now."""
        found: dict[int, Any] = {}
        _collect(model, found)
        live = [vars(each) for each in found.values() if not isinstance(each, Tensor)]
        tensors = [each for each in found.values() if isinstance(each, Tensor)]
        kinds = {type(each) for each in found.values() if isinstance(each, nn.Module)}
        empty: list[Any] = []
        return cls(
            kept=[{name: _copy(value, empty) for name, value in attributes.items()} for attributes in live],
            live=live,
            empty=empty,
            places=(tensors, _places(tensors)),
            forwards=[(kind, kind.forward) for kind in kinds],
            surroundings=_surroundings(),
        )

    def holds(self) -> bool:
        """Whether it still is."""
        tensors, places = self.places
        return (
            not any(self.empty)
            and self._names_the_same()
            and _places(tensors) == places
            and all(kind.forward is forward for kind, forward in self.forwards)
            and _surroundings() == self.surroundings
        )

    def _names_the_same(self) -> bool:
        try:
            return self.kept == self.live  # in this order: what is kept says whether it is equal
        except RuntimeError:  # another tensor, which cannot be said to be equal or not
            return False


def _collect(value: Any, found: dict[int, Any], inside: frozenset[int] = frozenset()) -> None:
    """Add each tensor and each object with attributes that `value` is, holds or names; `inside` are the containers."""
    if isinstance(value, dict | list | tuple | set | frozenset):
        if id(value) not in inside:
            for inner in value.values() if isinstance(value, dict) else value:
                _collect(inner, found, inside | {id(value)})
    elif isinstance(value, Tensor):
        found[id(value)] = value
    elif not isinstance(value, _WITHOUT_STATE) and hasattr(value, "__dict__") and id(value) not in found:
        found[id(value)] = value
        _collect(vars(value), found)


def _copy(value: Any, empty: list[Any], inside: frozenset[int] = frozenset()) -> Any:
    """What is equal to `value` as long as nothing in it is exchanged; the objects inside are watched on their own."""
    if isinstance(value, dict | list | set) and not value:
        empty.append(value)
        return value
    if id(value) in inside:
        return _Same(value)
    within = inside | {id(value)}
    if isinstance(value, dict):
        return {key: _copy(inner, empty, within) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copy(inner, empty, within) for inner in value)
    if type(value) is set:
        return set(value)
    several = isinstance(value, Tensor) and value.numel() > 1
    return value if several or isinstance(value, (*_VALUES, nn.Module)) else _Same(value)


def _places(tensors: list[Tensor]) -> list[tuple[Any, ...]]:
    return [(tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors]


def _surroundings() -> tuple[Any, ...]:
    """Threads of operations on the CPU, the types of autocast, and whether there are hooks of all modules."""
    casts = (torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda"))
    return torch.get_num_threads(), *casts, bool(_has_any_global_hook())
