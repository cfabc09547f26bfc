"""Adapters on disk: saved for peft and for those who read each expert by its name, merged, and read again."""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from modelwright.checkpoints.lora import (
    BASE,
    CONFIG,
    PREFIX,
    WEIGHTS,
    A,
    B,
    LoraFolder,
    LoraPair,
    tied_weights,
    transposed_weights,
)
from modelwright.checkpoints.places import places_of
from modelwright.errors import CheckpointError, ConfigError
from modelwright.layers.lora import STACKS, Adapted, LowRank, lora_of, replace_module
from modelwright.training.tuning.lora import merged_weights, put_pairs

FORMATS = ("stacked", "official", "merged")


def save_adapter(model: Any, folder: str | Path, format: str = "stacked", base: str | None = None) -> None:
    """Write the LoRA of ``model``, and the layers that trained whole beside it.

    Args:
        format: ``stacked``, as peft writes an adapter of this model (stacks of experts by ``target_parameters``);
            ``official``, with a pair for each official layer, so for each expert; or ``merged``, the whole model with
            its pairs folded in.
        base: where the model's own weights are; by default what its config says.

    Raises:
        ConfigError: an unknown format, or a model without LoRA.
        CheckpointError: what trained whole cannot be said in an adapter, or the folder cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}; got {format!r}")
    pairs = lora_of(model)
    if not pairs:
        raise ConfigError(f"{type(model).__name__} has no LoRA, so there is no adapter to save")
    folder = Path(folder)
    if format == "merged":
        with _merged(model):
            model.save_pretrained(folder)
        return
    named = _official(model, pairs) if format == "official" else _stacked(model, pairs)
    whole, biases = _whole_modules(model), _biases(model, format)
    tensors = {f"{PREFIX}{layer}{end}": tensor for layer, pair in named.items() for end, tensor in _packed(pair)}
    tensors |= {f"{PREFIX}{name}": model.get_parameter(name).detach() for names in whole.values() for name in names}
    tensors |= {f"{PREFIX}{layer}{BASE}.bias": bias for layer, bias in biases.items()}
    config = _config(model, pairs, named, format, base or getattr(model.config, "_name_or_path", "") or None)
    config["modules_to_save"], config["bias"] = sorted(whole) or None, "lora_only" if biases else "none"
    tied = tied_weights(model)
    if tied & {name for names in whole.values() for name in names}:  # peft wraps both of them then, and wants both
        config["ensure_weight_tying"] = True
        tensors |= {f"{PREFIX}{name}": model.get_parameter(name).detach() for name in tied}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"the adapter cannot be written to {folder}: {error}") from error


@torch.no_grad()
def load_adapter(model: Any, folder: str | Path, dropout: float = 0.0) -> dict[str, LowRank]:
    """Give ``model`` the LoRA in a folder that peft or :func:`save_adapter` wrote; returns the pairs by weight.

    Layers that were trained whole take the place of the model's, and train further, as the pairs do and nothing else.
    ``dropout`` is that of further training.

    Raises:
        CheckpointError: it is no LoRA, or not of this model.
    """
    adapter = LoraFolder.read(Path(folder))
    adapter.check_ties(model)
    state, whole = model.state_dict(), set()
    for name, place, tensor in adapter.whole(model):
        if name.endswith(f"{BASE}.weight"):
            continue  # a layer's own weight, which peft saves with the adapter of a head
        state[place.parameter][place.index or ...] = tensor.to(state[place.parameter].dtype)
        whole.add(place.parameter)
    pairs = put_pairs(model, adapter.beside(model), dropout, bool(adapter.config.get("use_rslora")))
    for name, parameter in model.named_parameters():
        if name in whole:
            parameter.requires_grad_(True)
    return pairs


def _stacked(model: Any, pairs: Mapping[str, LowRank]) -> dict[str, LoraPair]:
    """Pairs by peft's names: wrappers of one module's stacks are nested, the first innermost."""
    found = {}
    for name, pair in pairs.items():
        module, _, weight = name.rpartition(".")
        inner = weight == STACKS[0] and f"{module}.{STACKS[1]}" in pairs
        found[f"{module}{BASE}" if inner else module] = _pair(pair)
    return found


def _official(model: Any, pairs: Mapping[str, LowRank]) -> dict[str, LoraPair]:
    """Pairs by the names of official layers: parts of one matrix have its A in common, and rows of its B."""
    found = {}
    for name, place in places_of(model).items():
        if place.parameter in pairs and name.endswith(".weight"):
            pair = _pair(pairs[place.parameter])
            found[name.removesuffix(".weight")] = pair.part(place.index) if place.index else pair
    return found


def _pair(pair: LowRank) -> LoraPair:
    return LoraPair(pair.A.detach(), pair.B.detach(), pair.scale)


def _packed(pair: LoraPair) -> Iterator[tuple[str, Tensor]]:
    yield from zip((A, B), pair.packed(), strict=True)


def _trained_biases(model: nn.Module) -> set[str]:
    """The biases that train in layers whose weights have a pair."""
    layers = {name.removesuffix(".weight") for name in lora_of(model)}
    return {name for name in trained_whole(model) if name.endswith(".bias") and name.removesuffix(".bias") in layers}


def _biases(model: Any, format: str) -> dict[str, Tensor]:
    """Those biases by the layers that their pairs are named by."""
    trained = {name: model.get_parameter(name).detach() for name in _trained_biases(model)}
    if format != "official":
        return {name.removesuffix(".bias"): bias for name, bias in trained.items()}
    return {
        name.removesuffix(".bias"): trained[place.parameter][place.index or ...]
        for name, place in places_of(model).items()
        if place.parameter in trained
    }


def check_adapted(model: Any) -> None:
    """Raise a CheckpointError where what trains of a model with LoRA cannot be said in an adapter."""
    _whole_modules(model)


def _whole_modules(model: nn.Module) -> dict[str, list[str]]:
    """The outermost modules whose own parameters train and are of no pair, with the names of all that is in them."""
    trained = trained_whole(model) - _trained_biases(model)
    modules = {name.rpartition(".")[0] for name in trained}
    if "" in modules:
        loose = sorted(name for name in trained if "." not in name)
        raise CheckpointError(
            f"an adapter holds layers, and {', '.join(loose)} trained, which are of none: save it with format merged"
        )
    outermost = {module for module in modules if not any(module.startswith(f"{other}.") for other in modules)}
    names = {
        module: [f"{module}.{own}" for own, _ in model.get_submodule(module).named_parameters()] for module in outermost
    }  # peft copies a module with all that is in it
    for own in (own for of_module in names.values() for own in of_module if ".lora." in own):
        raise CheckpointError(
            f"an adapter holds layers whole or their LoRA, and {own} lies in one that trained whole: save it with "
            "format merged"
        )
    return names


def trained_whole(model: nn.Module) -> set[str]:
    """The parameters of a model with LoRA that train and are of no pair."""
    return {name for name, each in model.named_parameters() if each.requires_grad and ".lora." not in name}


def _config(
    model: Any, pairs: Mapping[str, LowRank], named: Mapping[str, LoraPair], format: str, base: str | None
) -> dict[str, Any]:
    """What peft needs to make the same layers, and to give them the same ranks and scales."""
    rslora = any(pair.rslora for pair in pairs.values())

    def alpha(pair: Any) -> float | int:
        found = pair.scale * (math.sqrt(pair.rank) if rslora else pair.rank)
        return round(found) if math.isclose(found, round(found), rel_tol=1e-9) else found

    usual = Counter((pair.rank, alpha(pair)) for pair in pairs.values()).most_common(1)[0][0]
    stacked = {name: pair for name, pair in pairs.items() if name.rpartition(".")[2] in STACKS}
    if format == "official":
        modules, parameters = sorted(named), []
        keyed: dict[str, Any] = dict(named)
        known = [name.removesuffix(".weight") for name in places_of(model) if name.endswith(".weight")]
    else:
        # peft reads the names of official experts as those of their stacks, whatever else is called so
        taken = {name.rpartition(".")[2] for name in _parts_of_stacks(model)}
        alone = {name.removesuffix(".weight"): pair for name, pair in pairs.items() if name not in stacked}
        by_name = {name: pair for name, pair in alone.items() if name.rpartition(".")[2] in taken}
        modules = sorted(alone.keys() - by_name.keys())
        parameters = sorted([*stacked, *(f"{name}.weight" for name in by_name)])
        keyed = {**{name: alone[name] for name in modules}, **{name: pairs[name] for name in parameters}}
        known = [name for name, _ in model.named_modules()]
    ranks = {_escaped(name): pair.rank for name, pair in keyed.items() if pair.rank != usual[0]}
    alphas = {_escaped(name): alpha(pair) for name, pair in keyed.items() if alpha(pair) != usual[1]}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": usual[0],
        "lora_alpha": usual[1],
        "lora_dropout": 0.0 if parameters else next(iter(pairs.values())).dropout,  # peft has none beside parameters
        "use_rslora": rslora,
        "use_dora": False,
        "lora_bias": False,
        "fan_in_fan_out": bool(transposed_weights(model) & pairs.keys()),
        "init_lora_weights": True,
        "target_modules": shortest(modules, known),
        "target_parameters": shortest(parameters, [name for name, _ in model.named_parameters()]) or None,
        "exclude_modules": None,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def _parts_of_stacks(model: nn.Module) -> list[str]:
    """The official layers that are parts of a stack of experts."""
    places = places_of(model)
    return [name.removesuffix(".weight") for name, place in places.items() if place.parameter.endswith(STACKS)]


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")


def shortest(names: Iterable[str], known: Collection[str]) -> list[str]:
    """The shortest ends of ``names`` that no other of the ``known`` names has, each once, in order."""
    wanted = set(names)
    ends: dict[str, set[str]] = {}
    for name in {*known, *wanted}:
        words = name.split(".")
        for start in range(len(words)):
            ends.setdefault(".".join(words[start:]), set()).add(name)
    found = {}
    for name in sorted(wanted):
        words = name.split(".")
        tails = (".".join(words[start:]) for start in reversed(range(len(words))))
        found[next(tail for tail in tails if ends[tail] <= wanted)] = None
    return list(found)


@contextmanager
def _merged(model: Any) -> Iterator[None]:
    """The model with its pairs folded into copies of their weights, and as it was thereafter."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}
    weights = merged_weights(model)
    try:
        for name, module in adapted.items():
            plain = module.plain()
            for weight in module.lora:
                plain._parameters[weight] = nn.Parameter(weights[f"{name}.{weight}"], requires_grad=False)
            replace_module(model, name, plain)
        yield
    finally:
        for name, module in adapted.items():
            replace_module(model, name, module)
