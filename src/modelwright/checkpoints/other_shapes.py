"""What a checkpoint holds in another shape than a model has it: single tensors, and whole stacks of experts."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from modelwright.checkpoints.places import Place
from modelwright.checkpoints.shards import TensorHeader

_NUMBERED = re.compile(r"(.+)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class OtherShape:
    """Tensors of a checkpoint that do not fit one parameter.

    Attributes:
        name: what transformers calls them: that of the one tensor, or that of the stack in memory.
        parameter: what they are for, by its name in memory.
        tensors: their names in the checkpoint.
        there: the shape that they have, or make when stacked.
        here: the shape that the model has.
    """

    name: str
    parameter: str
    tensors: frozenset[str]
    there: tuple[int, ...]
    here: tuple[int, ...]


def other_shapes(
    found: Mapping[str, TensorHeader], places: Mapping[str, Place], sizes: Mapping[str, Tensor]
) -> list[OtherShape]:
    """All that has another shape in ``found``, named as in ``places`` or, of a state dict, as in memory.

    Of a stack the number of its experts may differ, too. One whose parts do not make a stack is not among them.

    Args:
        sizes: the model's parameters, of which only the shapes are read.
    """
    stacks = {place.parameter for place in places.values() if _is_stacked(place)}
    singles = (
        OtherShape(name, places[name].parameter, frozenset({name}), header.shape, places[name].shape)
        for name, header in found.items()
        if name in places and places[name].parameter not in stacks
    )
    parameters = {place.parameter for place in places.values() if place.index}
    wholes = (
        OtherShape(name, name, frozenset({name}), found[name].shape, tuple(sizes[name].shape))
        for name in parameters
        if name in found
    )
    return [each for each in (*singles, *wholes, *_stacks(found, places, sizes)) if each.there != each.here]


def _stacks(
    found: Mapping[str, TensorHeader], places: Mapping[str, Place], sizes: Mapping[str, Tensor]
) -> Iterator[OtherShape]:
    """The stacks that the experts in ``found`` make, of whatever number and size, as long as all are alike."""
    kinds: dict[str, set[tuple[str, str]]] = {}  # of each stack: the layer, and what its parts are called there
    for name, place in places.items():
        if _is_stacked(place) and (parts := _NUMBERED.fullmatch(name)) is not None:
            kinds.setdefault(place.parameter, set()).add((parts[1], parts[3]))
    there: dict[tuple[str, str], dict[str, TensorHeader]] = {}
    for name, header in found.items():
        if (parts := _NUMBERED.fullmatch(name)) is not None:
            there.setdefault((parts[1], parts[3]), {})[parts[2]] = header
    for parameter, own in kinds.items():
        experts = {kind: there.get(kind, {}) for kind in own}
        shapes = [{header.shape for header in headers.values()} for headers in experts.values()]
        if len({frozenset(headers) for headers in experts.values()}) > 1 or any(len(each) != 1 for each in shapes):
            continue
        alike = [next(iter(each)) for each in shapes]
        count = len(next(iter(experts.values())))
        whole = (count, sum(shape[0] for shape in alike), *alike[0][1:])
        names = frozenset(
            f"{layer}.{number}.{part}" for (layer, part), headers in experts.items() for number in headers
        )
        yield OtherShape(parameter, parameter, names, whole, tuple(sizes[parameter].shape))


def _is_stacked(place: Place) -> bool:
    return bool(place.index) and isinstance(place.index[0], int)
