"""`merge_adapter`, a LoRA folded into the weights that it is of: computing then costs nothing more.

Beside weights that are stored in integers its pairs stay as they are, and are computed with.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelwright.checkpoints.lora import BASE, LoraFolder, LoraPair, transposed_weights
from modelwright.checkpoints.places import Place
from modelwright.errors import CheckpointError
from modelwright.layers.lora import LowRank, put_beside


def merge_adapter(model: Any, folder: Path) -> None:
    """Add the adapter in `folder` to the weights of `model`, a network as `load_network` reads it.

    ``W + alpha / r * B @ A`` is computed in float32 and rounded to the weight's type, as peft does. Stacked layers take
    the adapters of their official parts, or those of peft's ``target_parameters``; layers that were trained whole
    (``modules_to_save``) take the place of the model's.

    Raises:
        CheckpointError: there is no adapter, it is no LoRA in safetensors, or it holds a tensor that is not of this
            model, or of one that is two things here, which is named.
    """
    adapter, beside = LoraFolder.read(folder), {}
    adapter.check_ties(model, folds=True)
    state, turned = model.state_dict(), transposed_weights(model)
    for name, place, tensor in adapter.whole(model):
        _take(name, place, tensor, state, folder)
    for name, pair in adapter.beside(model).items():
        weight = state[name]
        if not weight.is_floating_point():
            beside[name] = _pair(pair, weight.device, model.dtype)
            continue
        delta = (pair.scale * (pair.b.float() @ pair.a.float())).to(weight.device)
        weight.copy_(weight.float() + (delta.t() if name in turned else delta))
    put_beside(model, beside)


def check_adapter(folder: Path) -> None:
    """Raise a CheckpointError for what can be told of an adapter without its model."""
    LoraFolder.read(folder)


def _pair(pair: LoraPair, device: torch.device, dtype: torch.dtype) -> LowRank:
    made = LowRank(pair.a.to(device, dtype), pair.b.to(device, dtype), pair.scale)
    return made.requires_grad_(False)


def _take(name: str, place: Place, tensor: Tensor, state: dict[str, Tensor], folder: Path) -> None:
    """Put a tensor that was trained whole in its place; a layer's own weight must be this model's already."""
    own = state[place.parameter][place.index or ...]
    tensor = tensor.to(own.device, own.dtype)
    if not name.endswith(f"{BASE}.weight"):
        state[place.parameter][place.index or ...] = tensor
    elif not torch.equal(own, tensor):
        layer = name.removesuffix(f"{BASE}.weight")
        raise CheckpointError(f"the adapter in {folder} was made for other weights of {layer} than this model has")
