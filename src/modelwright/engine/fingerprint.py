"""`Fingerprint`, what the Python of a model's passes depends on at one moment, to see whether it still is so.

It says nothing of what weights are worth (``contents.py``): a pass that was captured reads them where they lie. Asking
again compares a copy of every module's attributes with what they now are, which for 300 modules takes a quarter of a
millisecond.
"""

from dataclasses import dataclass
from operator import attrgetter
from types import BuiltinFunctionType, FunctionType, GenericAlias, ModuleType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, type)
"""Types whose values never change, so that equal ones are as good as the same."""
_WITHOUT_STATE = (*_VALUES, Tensor, FunctionType, BuiltinFunctionType, ModuleType, GenericAlias)
_FORM = attrgetter("shape", "dtype")
_ON_DEMAND = frozenset({"__annotations__", "__annotations_cache__", "__annotate_func__"})
"""What Python itself writes into a class when somebody first asks for its annotations; no pass depends on it."""


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
        tensors: those among them, what wrapped ones hold included.
        places: where and how each lay.
        classes: the modules' classes and what those derive from, and a copy of the attributes of each: its methods and
            what else all its modules share.
        surroundings: what is asked of torch rather than of the model.
    """

    kept: list[dict[str, Any]]
    live: list[dict[str, Any]]
    empty: list[Any]
    tensors: list[Tensor]
    places: tuple[list[Any], ...]
    classes: list[tuple[Any, dict[str, Any]]]
    surroundings: tuple[Any, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """As it is now."""
        found: dict[int, Any] = {}
        _collect(model, found)
        live = [vars(each) for each in found.values() if not isinstance(each, Tensor)]
        tensors = [plain for each in found.values() if isinstance(each, Tensor) for plain in _plain(each)]
        kinds = {kind for each in found.values() if isinstance(each, nn.Module) for kind in type(each).__mro__}
        empty: list[Any] = []
        return cls(
            kept=[{name: _copy(value, empty) for name, value in attributes.items()} for attributes in live],
            live=live,
            empty=empty,
            tensors=tensors,
            places=_places(tensors),
            classes=[(vars(kind), dict(vars(kind))) for kind in kinds if kind is not object],
            surroundings=_surroundings(),
        )

    def holds(self) -> bool:
        """Whether it still is."""
        return (
            not any(self.empty)
            and self._names_the_same()
            and _places(self.tensors) == self.places
            and _surroundings() == self.surroundings
        )

    def _names_the_same(self) -> bool:
        try:
            # In this order: what is kept says whether it is equal.
            return self.kept == self.live and all(
                kept == live or _written(kept) == _written(live) for live, kept in self.classes
            )
        except (RuntimeError, ValueError):  # another tensor or array, which cannot be said to be equal or not
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


def _written(attributes: Any) -> dict[str, Any]:
    """The attributes of a class, but for what Python adds to it by itself."""
    return {name: value for name, value in attributes.items() if name not in _ON_DEMAND}


def _plain(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold the numbers of one: itself, or those inside that it wraps."""
    if type(tensor) in (Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [plain for name in names for plain in _plain(getattr(tensor, name))]


def _places(tensors: list[Tensor]) -> tuple[list[Any], ...]:
    return (list(map(Tensor.data_ptr, tensors)), list(map(Tensor.stride, tensors)), list(map(_FORM, tensors)))


def _surroundings() -> tuple[Any, ...]:
    """Threads of operations on the CPU, the types of autocast, hooks of all modules, and modes that watch torch."""
    casts = (torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda"))
    modes = torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()
    return torch.get_num_threads(), *casts, bool(_has_any_global_hook()), *modes
