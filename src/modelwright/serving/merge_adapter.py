"""`merge_adapter`, a LoRA that peft saved, folded into the weights that it is of: computing then costs nothing more."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modelwright.checkpoints.places import Place, check_shape
from modelwright.checkpoints.source import read_json
from modelwright.errors import CheckpointError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_RANK = 64
_PREFIX = "base_model.model."
_A, _B, _BASE = ".lora_A.weight", ".lora_B.weight", ".base_layer.weight"
_REFUSED = {
    "use_dora": "its magnitudes cannot be folded in here",
    "fan_in_fan_out": "its weights lie the other way round",
    "use_qalora": "it is of weights in groups",
    "alora_invocation_tokens": "it acts on a part of a prompt alone",
    "trainable_token_indices": "it changes single tokens",
    "target_parameters": "it is of parameters that are no layer's weight",
    "layer_replication": "it repeats layers",
    "lora_bias": "it has biases of its own",
}


def merge_adapter(model: Any, folder: Path) -> None:
    """Add the adapter in `folder` to the weights of `model`, a network as `load_network` reads it.

    ``W + alpha / r * B @ A`` is computed in float32 and rounded to the weight's type, as peft does. Stacked layers take
    the adapters of their official parts.

    Raises:
        CheckpointError: there is no adapter, it is no LoRA in safetensors, of more than `LARGEST_RANK`, or it holds a
            tensor that is not of this model, which is named.
    """
    config = _read_config(folder)
    tensors = _read_tensors(folder / WEIGHTS)
    places, state = model.places(), model.state_dict()
    for name in [name for name in tensors if name.endswith(_BASE)]:
        _check_base(name, tensors.pop(name), places, state, folder)
    with torch.no_grad():
        for layer, (a, b) in _pairs(tensors, folder).items():
            place = _place_of(layer, places, state, folder)
            check_shape(f"{layer}{_B}", tuple(b.shape), (place.shape[0], a.shape[0]), str(folder))
            check_shape(f"{layer}{_A}", tuple(a.shape), (a.shape[0], place.shape[1]), str(folder))
            parameter = state[place.parameter]
            weight = parameter[place.index] if place.index else parameter
            delta = _scale(layer, a.shape[0], config) * (b.float() @ a.float())
            parameter[place.index or ...] = (weight.float() + delta.to(weight.device)).to(weight.dtype)


def check_adapter(folder: Path) -> None:
    """Raise a CheckpointError for what can be told of an adapter without its model."""
    _read_config(folder)
    _pairs(_read_tensors(folder / WEIGHTS), folder)


def _read_config(folder: Path) -> Mapping[str, Any]:
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no adapter, for there is no {CONFIG}")
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{folder} holds an adapter of the type {kind!r:.40}, and only LORA can be folded in")
    for field, why in _REFUSED.items():
        if config.get(field):
            raise CheckpointError(f"the adapter in {folder} has {field}, and {why}")
    if not isinstance(config.get("lora_alpha"), int | float) or not isinstance(config.get("r"), int):
        raise CheckpointError(f"{folder / CONFIG} must have the numbers r and lora_alpha")
    return config


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise CheckpointError(f"{file.parent} has no {WEIGHTS}; other files of weights are not read")
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _pairs(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each layer; every tensor is one of them."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.endswith(_BASE):
            continue
        end = next((end for end in (_A, _B) if name.endswith(end)), None)
        if end is None or not name.startswith(_PREFIX) or tensor.dim() != 2 or not tensor.is_floating_point():
            raise CheckpointError(f"{name} in {folder} is no matrix of a LoRA, so the adapter cannot be folded in")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name} in {folder} is not finite")
        found.setdefault(name.removeprefix(_PREFIX).removesuffix(end), {})[end] = tensor
    for layer, pair in found.items():
        if len(pair) != 2:
            raise CheckpointError(f"the adapter in {folder} lacks {layer}{_A if _B in pair else _B}")
        if pair[_A].shape[0] > LARGEST_RANK:
            raise CheckpointError(
                f"the rank of an adapter must be at most {LARGEST_RANK}, and that of {layer} is {pair[_A].shape[0]}"
            )
    if not found:
        raise CheckpointError(f"the adapter in {folder} is empty")
    return {layer: (pair[_A], pair[_B]) for layer, pair in found.items()}


def _place_of(layer: str, places: Mapping[str, Place], state: Mapping[str, Tensor], folder: Path) -> Place:
    place = places.get(f"{layer}.weight")
    if place is None:
        raise CheckpointError(f"the adapter in {folder} is of {layer}, which this model has not")
    if len(place.shape) != 2 or not state[place.parameter].is_floating_point():
        raise CheckpointError(
            f"the adapter in {folder} is of {layer}, whose weights are {state[place.parameter].dtype} of shape "
            f"{list(place.shape)}: fold it in before they are quantized"
        )
    return place


def _check_base(
    name: str, tensor: Tensor, places: Mapping[str, Place], state: Mapping[str, Tensor], folder: Path
) -> None:
    """A layer's own weight, which peft saves with an adapter of a head, must be this model's."""
    layer = name.removeprefix(_PREFIX).removesuffix(_BASE)
    place = _place_of(layer, places, state, folder)
    own = state[place.parameter][place.index] if place.index else state[place.parameter]
    if own.shape != tensor.shape or not torch.equal(own, tensor.to(own.device, own.dtype)):
        raise CheckpointError(f"the adapter in {folder} was made for other weights of {layer} than this model has")


def _scale(layer: str, rank: int, config: Mapping[str, Any]) -> float:
    alpha = _of_pattern(layer, config.get("alpha_pattern") or {}, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(layer: str, pattern: Mapping[str, float], otherwise: float) -> float:
    """The value of the first pattern that the end of a layer's name matches, as in peft."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), otherwise)
