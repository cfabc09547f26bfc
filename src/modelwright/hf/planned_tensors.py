"""Parameters that accelerate's hooks keep elsewhere than in the model, on disk or in host memory, ready to save."""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial

from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter

from modelwright.checkpoints.places import Place, split
from modelwright.checkpoints.shards import PlannedTensor
from modelwright.errors import CheckpointError

STACKS = 2
"""Stacks of experts that are in memory at a time: parts of both of a layer are written one after another."""


def planned_tensors(
    model: PreTrainedModel, places: Mapping[str, Place], state: Mapping[str, Tensor]
) -> list[PlannedTensor]:
    """What to write of ``state`` under official names; what is on the meta device comes from where it was moved to.

    Raises:
        CheckpointError: ``state`` lacks a tensor; or, when one is made, it has no numbers anywhere.
    """
    read = lru_cache(STACKS)(partial(_read, model))
    return [
        PlannedTensor(name, tensor.nbytes, _reader(read, places[name]))
        if tensor.is_meta
        else PlannedTensor.of(name, tensor)
        for name, tensor in split(places, state)
    ]


def _reader(read: Callable[[str], Tensor], place: Place) -> Callable[[], Tensor]:
    return lambda: read(place.parameter)[place.index].detach().to("cpu", copy=True).contiguous()


def _read(model: PreTrainedModel, parameter: str) -> Tensor:
    try:
        return load_offloaded_parameter(model, parameter)
    except (ValueError, AttributeError, KeyError, TypeError) as error:  # whatever a hook that has no such tensor raises
        raise CheckpointError(f"{parameter} is on the meta device and has no numbers to save") from error
