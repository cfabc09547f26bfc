"""LoRA of official layers that are parts of a stack here, made LoRA of the stack; and of layers that peft passed over.

An adapter trained on the official layout has a pair of matrices for each expert, ``experts.N.gate_proj.lora_A``. Here
the experts of a layer are two parameters, for which peft has ``target_parameters``: of all experts one pair, whose rank
holds each part of the stack beside the others. ``B @ A`` of the pair is that of the parts, each in its place.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modelwright.checkpoints.lora import LoraPair, LoraSettings, join_pairs
from modelwright.checkpoints.places import Place, places_of
from modelwright.errors import CheckpointError

_TENSOR = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])(\.(?P<adapter>[^.]+))?\.weight")
_WRAPPED = ".base_layer"
_PLAIN = frozenset({
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "target_parameters", "modules_to_save", "fan_in_fan_out"),
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "ensure_weight_tying"),
    *("layers_to_transform", "layers_pattern", "init_lora_weights", "trainable_token_indices", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
})  # fmt: skip
"""The fields of peft's LoraConfig beside which a layer's update is ``scale * B @ A``, whatever they say."""
_CHANGES_WEIGHTS = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""First weights of LoRA for which peft subtracts something from the layer's own."""
_PEFT = (0, 20)
"""The first release of peft that serves: 0.19 refuses a second adapter with ``target_parameters``, and finds no
layer for tensors of a model that is no PeftModel."""


def official_layers(model: nn.Module) -> dict[str, Place]:
    """Each official layer with the place of its weight, whatever peft has wrapped."""
    places = {name.replace(_WRAPPED, ""): place for name, place in places_of(model).items()}
    return {name.removesuffix(".weight"): place for name, place in places.items() if name.endswith(".weight")}


def check_peft() -> None:
    """Raise unless the installed peft can hold LoRA of parts of a stack.

    Raises:
        CheckpointError: it is older than that.
    """
    import peft

    if tuple(int(number) for number in re.findall(r"\d+", peft.__version__)[:2]) < _PEFT:
        raise CheckpointError(
            f"LoRA of experts and of other parts of a stack needs peft {'.'.join(map(str, _PEFT))} or newer, and "
            f'{peft.__version__} is installed: pip install --upgrade "modelwright[peft]"'
        )


def place_lora(model: nn.Module, state: dict[str, Any], prefix: str, names: Iterable[str]) -> None:
    """Give layers the LoRA that ``state`` has for them and no module of ``model`` would take.

    peft has made the adapter and begun to load it: its config is in ``model.peft_config``. What peft can wrap it wraps
    now, and ``state`` then holds what the wrappers take. The config says what was added, so that a saved adapter is
    read again.

    Args:
        names: those tensors of ``state``, without ``prefix``.

    Raises:
        CheckpointError: there is something else than LoRA among them, or LoRA that is more than ``B @ A``, or the
            installed peft is too old.
    """
    check_peft()
    layers, usual = official_layers(model), _adapter_of(model, state)
    given: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name in names:
        found = _TENSOR.fullmatch(name)
        if found is None:
            raise CheckpointError(f"an adapter has {name}, and of a layer that peft has not wrapped LoRA alone is read")
        layer = given.setdefault(found["adapter"] or usual, {}).setdefault(found["layer"], {})
        layer[found["side"]] = state.pop(prefix + name)
    for adapter, of_layers in given.items():
        config = getattr(model, "peft_config", {}).get(adapter)
        _check(config, adapter)
        pairs = {layer: _pair(layer, sides, config) for layer, sides in of_layers.items()}
        stacked = {layer: pair for layer, pair in pairs.items() if layer in layers and layers[layer].index}
        whole = _by_parameter(model, {layer: layers[layer] for layer in stacked}, stacked)
        alone = {layer: pair for layer, pair in pairs.items() if layer not in stacked}
        _wrap(model, config, adapter, alone | whole)
        for name, pair in (alone | whole).items():
            path, module = _wrapper(model, name)
            scaled = pair.b * (pair.scale / module.scaling[adapter])
            a, b = _as_wide(name, pair.a, scaled, module, adapter)
            state[f"{prefix}{path}.lora_A.{adapter}.weight"], state[f"{prefix}{path}.lora_B.{adapter}.weight"] = a, b
        _empty_the_rest(model, state, prefix, adapter)


def _adapter_of(model: nn.Module, state: Iterable[str]) -> str:
    """The adapter that tensors without a name of one are of: that of the others, or the last that was made.

    From 0.21 on peft puts no name into the tensors of a layer that it has not wrapped.
    """
    named = {found["adapter"] for name in state if (found := _TENSOR.fullmatch(name)) and found["adapter"]}
    made = list(getattr(model, "peft_config", {}))
    return named.pop() if len(named) == 1 else next(reversed(made), "")


def _check(config: Any, adapter: str) -> None:
    """Raise unless an adapter is LoRA whose update is ``scale * B @ A``."""
    peft_type = str(getattr(getattr(config, "peft_type", None), "value", "unknown"))
    if peft_type != "LORA":
        raise CheckpointError(
            f"adapter {adapter} is of type {peft_type}: of experts and of other parts of a stack LoRA alone is read"
        )
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name not in _PLAIN and value not in (default, None, False):
            raise CheckpointError(
                f"adapter {adapter} has {field.name}={value!r}, which LoRA of experts and of other parts of a stack "
                "cannot have: merge it into the checkpoint first"
            )
    first = config.init_lora_weights
    if isinstance(first, str) and first.startswith(_CHANGES_WEIGHTS):
        raise CheckpointError(
            f"adapter {adapter} was begun with init_lora_weights={first!r}, which changes the weights under it: save "
            "it with peft's path_initial_model_for_weight_conversion first"
        )
    if config.lora_dropout and not config.inference_mode:
        raise CheckpointError(
            f"adapter {adapter} cannot be trained with lora_dropout={config.lora_dropout} on a stack of experts: "
            "set it to 0 in adapter_config.json, or load the adapter with is_trainable=False"
        )


def _pair(layer: str, sides: Mapping[str, Tensor], config: Any) -> LoraPair:
    if len(sides) != 2:
        raise CheckpointError(f"an adapter has lora_{next(iter(sides))} of {layer} and not the other of the two")
    a, b, settings = sides["A"], sides["B"], LoraSettings.of(config)
    rank = settings.rank_of(layer)
    if len(a) != rank or b.shape[1] != rank:
        raise CheckpointError(
            f"the adapter of {layer} has rank {len(a)}, and {b.shape[1]} in lora_B, and adapter_config.json says {rank}"
        )
    return LoraPair(a, b, settings.scale_of(layer, rank))


def _by_parameter(model: nn.Module, places: Mapping[str, Place], pairs: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
    """Pairs of parts as one for each parameter, as peft packs them: of a matrix, or of a stack of them."""
    grouped: dict[str, list[str]] = {}
    for layer, place in places.items():
        grouped.setdefault(place.parameter, []).append(layer)
    joined, parameters = {}, dict(model.named_parameters())
    for name, layers in grouped.items():
        weight = parameters.get(name)
        if weight is None or not weight.is_floating_point():
            raise CheckpointError(f"an adapter of {layers[0]} cannot be loaded, for its weights are stored in integers")
        for layer in layers:
            shape = (pairs[layer].b.shape[0], pairs[layer].a.shape[1])
            if shape != places[layer].shape:
                own = list(places[layer].shape)
                raise CheckpointError(f"the adapter of {layer} has shape {list(shape)}, and the layer's weight {own}")
        own = name.replace(_WRAPPED, "")
        whole = join_pairs(tuple(weight.shape), [(places[layer].index, pairs[layer]) for layer in layers])
        key = own if weight.dim() == 3 else own.removesuffix(".weight")
        joined[key] = LoraPair(*whole.packed(), whole.scale)
    return joined


def _wrap(model: Any, config: Any, adapter: str, pairs: Mapping[str, LoraPair]) -> None:
    """Let peft wrap what it has not wrapped for this adapter, modules and parameters, and say so in ``config``."""
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    parameters = {name for name in pairs if _stacks(model, name) is not None}
    missing = sorted(name for name in parameters if not _takes(_wrapper(model, name)[1], adapter))
    modules = sorted(pairs.keys() - parameters)
    ranks = {name: pair.rank // (_stacks(model, name) or 1) for name, pair in pairs.items()}
    alphas = {name: _alpha(pair.scale, ranks[name], config.use_rslora) for name, pair in pairs.items()}
    wrappers = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    active = {module: list(module.active_adapters) for module in model.modules() if isinstance(module, wrappers)}
    usual = next(iter(active.values()), [adapter])

    def patterns(names: Iterable[str]) -> dict[str, Any]:
        names = list(names)
        return {
            "rank_pattern": {re.escape(name): ranks[name] for name in names},
            "alpha_pattern": {re.escape(name): alphas[name] for name in names},
        }

    common = {"use_rslora": config.use_rslora, "inference_mode": config.inference_mode}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a second config of the adapter, which is taken away again
        if modules:  # the keys say which: peft reads some models' names in target_modules as those of experts
            how = peft.LoraConfig(target_modules=["-"], lora_dropout=config.lora_dropout, **common, **patterns(modules))
            keys = {f"{name}.lora_A.weight": torch.empty(0) for name in modules}
            peft.inject_adapter_in_model(how, model, adapter, state_dict=keys)
        if missing:
            how = peft.LoraConfig(target_modules=[], target_parameters=missing, **common, **patterns(missing))
            peft.inject_adapter_in_model(how, model, adapter)
    model.peft_config[adapter] = config
    for module in model.modules():
        if isinstance(module, wrappers) and module.active_adapters != active.get(module, usual):
            module.set_adapter(active.get(module, usual), inference_mode=config.inference_mode)
    for field, added in patterns([*modules, *missing]).items():
        setattr(config, field, added | (getattr(config, field) or {}))
    config.target_parameters = sorted({*(config.target_parameters or ()), *missing})
    if not isinstance(config.target_modules, str):  # official names find their place again, ours by being named
        own = set(modules) - official_layers(model).keys()
        config.target_modules = {*(config.target_modules or ()), *own}


def _takes(wrapper: Any, adapter: str) -> bool:
    return wrapper is not None and adapter in wrapper.lora_A


def _alpha(scale: float, rank: int, use_rslora: bool) -> float | int:
    """What ``lora_alpha`` gives a pair of this rank that scale."""
    alpha = scale * (math.sqrt(rank) if use_rslora else rank)
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


def _stacks(model: nn.Module, name: str) -> int | None:
    """How many matrices a parameter stacks; None where ``name`` is that of a module with one matrix."""
    parent, _, leaf = name.rpartition(".")
    module: Any = model.get_submodule(parent)
    while hasattr(module, "base_layer"):
        module = module.base_layer
    weight = module._parameters.get(leaf)
    return None if weight is None else len(weight)


def _wrapper(model: nn.Module, name: str) -> tuple[str, Any]:
    """peft's layer around a module, or around a parameter of one, with its name; None where there is none."""
    parent, _, leaf = name.rpartition(".")
    path = name if _stacks(model, name) is None else parent
    module: Any = model.get_submodule(path)
    while path != name and hasattr(module, "base_layer") and getattr(module, "parameter_name", None) != leaf:
        path, module = f"{path}{_WRAPPED}", module.base_layer
    return path, module if hasattr(module, "base_layer") else None


def _as_wide(name: str, a: Tensor, b: Tensor, module: Any, adapter: str) -> tuple[Tensor, Tensor]:
    """A stack's pair, filled up with zeros to the rank that peft has given its wrapper."""
    wide = module.lora_A[adapter].weight.shape[0]
    if wide == len(a):
        return a, b
    stacks = module.num_experts
    more = wide // stacks - len(a) // stacks
    if more < 0:
        raise CheckpointError(
            f"the adapter of {name} has rank {len(a) // stacks} in all, and peft has made one of {wide // stacks}: "
            "load the adapter's folder by from_pretrained, or with the model's load_adapter"
        )
    rows, columns = a.unflatten(0, (stacks, -1)), b.unflatten(1, (-1, stacks))
    pad = nn.functional.pad
    return pad(rows, (0, 0, 0, more)).flatten(0, 1), pad(columns, (0, 0, 0, more)).flatten(1)


def _empty_the_rest(model: nn.Module, state: dict[str, Any], prefix: str, adapter: str) -> None:
    """Let stacks that peft has wrapped, and the adapter says nothing of, stay as they are."""
    for path, module in model.named_modules():
        if hasattr(module, "parameter_name") and adapter in getattr(module, "lora_B", ()):
            for side in ("A", "B"):
                key = f"{prefix}{path}.lora_{side}.{adapter}.weight"
                if key not in state:
                    state[key] = torch.zeros_like(getattr(module, f"lora_{side}")[adapter].weight)
