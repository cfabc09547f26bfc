"""Official tensor names against tensors in memory: which part of which parameter is which, in both directions.

Leaves out files (``shards.py``) and what a class demands of a checkpoint (``pretrained.py``).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from modelwright.errors import CheckpointError
from modelwright.layers import Slot
from modelwright.layers.slots import Index
from modelwright.ops import host_memory


@runtime_checkable
class Stacked(Protocol):
    """A layer that stores several official tensors as one: stacked experts, a fused projection."""

    def slots(self) -> dict[str, Slot]:
        """Official names, relative to the layer, to their places in its parameters."""
        ...


@dataclass(frozen=True)
class Place:
    """Where an official tensor lies: part ``index`` of a parameter or buffer (``()``: all of it), and its shape."""

    parameter: str
    index: Index
    shape: tuple[int, ...]


def places_of(model: nn.Module) -> dict[str, Place]:
    """Every official tensor of ``model`` by its name on disk; works on the meta device too."""
    tensors = model.state_dict()
    table: dict[str, Place] = {}
    stacks: set[str] = set()
    for prefix, module in model.named_modules():
        if not isinstance(module, Stacked):
            continue
        for name, slot in module.slots().items():
            parameter = f"{prefix}.{slot.parameter}"
            part = tensors[parameter][slot.index]
            table[f"{prefix}.{name}"] = Place(parameter, slot.index, tuple(part.shape))
            stacks.add(parameter)
    for name, tensor in tensors.items():
        if name not in stacks:
            table[name] = Place(name, (), tuple(tensor.shape))
    return table


class Parameters:
    """Parameters put together from official tensors as they come: each is allocated once, by its first part.

    Args:
        sizes: the parameters, of which only the shapes are read.

    Attributes:
        state: the parameters by name. All parts of one are to be of one type.
    """

    def __init__(self, places: Mapping[str, Place], sizes: Mapping[str, Tensor]):
        self.state: dict[str, Tensor] = {}
        self._places, self._sizes = places, sizes

    def room(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """Where the official tensor ``name`` is to be written, in one piece; None where it lies in several."""
        index = self._places[name].index
        if any(isinstance(step, list) for step in index):
            return None
        part = self._whole(name, dtype)[index]
        return part if part.is_contiguous() else None

    def put(self, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
        """Copy an official tensor to its place, rounded to ``dtype``."""
        whole, index = self._whole(name, dtype, tensor.device), self._places[name].index
        scattered = any(isinstance(step, list) for step in index)  # which torch writes in the same type alone
        whole[index] = tensor.to(whole) if scattered else tensor

    def _whole(self, name: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        parameter = self._places[name].parameter
        if parameter not in self.state:
            self.state[parameter] = host_memory.empty(self._sizes[parameter].shape, dtype, device)
        return self.state[parameter]


def join(
    places: Mapping[str, Place], sizes: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]
) -> dict[str, Tensor]:
    """Official tensors, taken one at a time and copied, as :class:`Parameters` of their types.

    The parts of one parameter have one type.
    """
    parameters = Parameters(places, sizes)
    for name, tensor in tensors:
        parameters.put(name, tensor, tensor.dtype)
    return parameters.state


def common_types(places: Mapping[str, Place], tensors: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """For each official tensor the type that holds all those parts of its parameter which are given."""
    types: dict[str, torch.dtype] = {}
    for name, tensor in tensors.items():
        parameter = places[name].parameter
        types[parameter] = torch.promote_types(types.get(parameter, tensor.dtype), tensor.dtype)
    return {name: types[places[name].parameter] for name in tensors}


def split(places: Mapping[str, Place], state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Parameters under their official names; a name that is official already passes as it is.

    Parts are views, or copies where their rows lie scattered in a fused projection.

    Raises:
        CheckpointError: ``state`` lacks a tensor.
    """
    for name, place in places.items():
        if place.parameter in state:
            yield name, state[place.parameter][place.index] if place.index else state[place.parameter]
        elif name in state:
            yield name, state[name]
        else:
            raise CheckpointError(f"the weights to save lack {name}")


def check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...], where: str) -> None:
    """Raise a :class:`CheckpointError` with both shapes unless they are the same."""
    if found != wanted:
        raise CheckpointError(f"{name} has shape {list(found)} in {where}, and the config asks for {list(wanted)}")
