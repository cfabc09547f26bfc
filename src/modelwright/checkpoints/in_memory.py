"""Tensors that are in memory already, described as those of a file are, so that a model reads both in one way."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from modelwright.checkpoints.dialect import other_dialects
from modelwright.checkpoints.places import Place, check_shape
from modelwright.checkpoints.shards import FLOATS, INTEGERS, TensorHeader
from modelwright.errors import CheckpointError

STATE_DICT = Path("the state dict")
"""What stands for the file in messages."""


def headers_in_memory(state: Mapping[str, Tensor]) -> dict[str, TensorHeader]:
    """The tensors of a state dict by name, each of which makes itself.

    Raises:
        CheckpointError: their names are those of another dialect, or one is no tensor or has no numbers.
    """
    for dialect in other_dialects().values():
        if dialect.holds(state):
            raise CheckpointError(
                f"state_dict holds tensors under {dialect.title}' names: save them in a folder beside their config, "
                "and modelwright convert FOLDER NEW_FOLDER makes a checkpoint of it"
            )
    words = {dtype: word for word, dtype in (FLOATS | INTEGERS).items()}
    headers = {}
    for turn, (name, tensor) in enumerate(state.items()):
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            kind = "a tensor on the meta device" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise CheckpointError(f"state_dict must hold tensors with numbers, and {name} is {kind}")
        word = words.get(tensor.dtype, str(tensor.dtype))
        headers[name] = TensorHeader(name, STATE_DICT, tuple(tensor.shape), word, turn, tensor.detach)
    return headers


def with_stacks_apart(
    found: Mapping[str, TensorHeader],
    places: Mapping[str, Place],
    sizes: Mapping[str, Tensor],
    prefix: str,
    ignore_mismatched: bool = False,
) -> dict[str, TensorHeader]:
    """The headers of a state dict, in which layers may be whole that a checkpoint holds as several tensors.

    Args:
        places: every official tensor of the model that is to read them.
        sizes: its parameters, of which only the shapes are read.
        prefix: what its decoder is called, which names may lack or have.
        ignore_mismatched: whether such a layer may have another shape; it then stays whole, by its name in memory.

    Raises:
        CheckpointError: such a layer has another shape.
    """
    apart = dict(found)
    for official, place in places.items():
        own = place.parameter
        names = (own, own.removeprefix(f"{prefix}."), f"{prefix}.{own}") if place.index else ()
        given = next((name for name in names if name in found and found[name].make is not None), None)
        if given is not None:
            whole = found[given]
            fits = whole.shape == tuple(sizes[own].shape)
            if not ignore_mismatched:
                check_shape(own, whole.shape, tuple(sizes[own].shape), STATE_DICT.name)
            apart.pop(given, None)
            if fits:
                apart[official] = replace(whole, name=official, shape=place.shape, make=partial(_part, whole, place))
            else:
                apart[own] = whole
    return apart


def _part(whole: TensorHeader, place: Place) -> Tensor:
    assert whole.make is not None  # or it would be in a file
    return whole.make()[place.index]
