"""Classes that a caller derived of a family's model, with a head of their own say, and what of them is the family's."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from modelwright.checkpoints.places import places_of
from modelwright.families import families


def is_derived(cls: type) -> bool:
    """Whether a caller wrote the class, and no family names it as its own."""
    return not _of_a_family(cls) and any(_of_a_family(base) for base in cls.__mro__)


def inherited_names(model: nn.Module, places: Iterable[str]) -> set[str]:
    """The official names, of those in ``places``, that a checkpoint of the family must hold for a derived ``model``.

    They are those of the class that it was derived of; where that one has no parts yet, those of the decoder.
    """
    config: Any = model.config
    base: Any = next(each for each in type(model).__mro__ if _of_a_family(each))
    with torch.device("meta"):
        own = places_of(base(copy.deepcopy(config)))
    if own:
        return {name for name in places if name in own}
    prefix: Any = model.base_model_prefix
    return {name for name in places if name.startswith(f"{prefix}.")}


def _of_a_family(cls: type) -> bool:
    if cls.__module__.startswith("modelwright.families."):
        return True
    reference = f"{cls.__module__}:{cls.__qualname__}"
    return any(reference in (*family.architectures.values(), family.network) for family in families())
