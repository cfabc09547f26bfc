"""Adapters of other libraries: folders of peft's that stand for their base, and tensors that peft finds no layer for.

Official layers that are stored here as parts of a stack are no modules: ``lora.py`` gives their LoRA its place.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from transformers.utils.import_utils import is_peft_available
from transformers.utils.loading_report import LoadStateDictInfo

from modelwright.checkpoints.places import Stacked
from modelwright.checkpoints.source import find_folder, read_json
from modelwright.errors import CheckpointError
from modelwright.hf.lora import check_peft, official_layers, place_lora

_OWN = ("weight", "bias")
_ADAPTER = re.compile(r"\.(lora|ia3|hada|lokr|oft|boft|vera)_")  # tensors of adapters, as peft calls them


@dataclass(frozen=True)
class Adapter:
    """An adapter that peft saved, and the model that it is of.

    Attributes:
        folder: where it is.
        base: the folder or hub id of the model's own weights; the same folder where that holds a whole model too.
        name: what the model is to call it.
        options: transformers' ``adapter_kwargs`` for loading it.
    """

    folder: Path
    base: str | Path
    name: str
    options: dict[str, Any]

    @classmethod
    def of(cls, source: str | Path, folder: Path, kwargs: dict[str, Any]) -> Self | None:
        """The adapter that was asked for with ``source``, found in ``folder``; None where it is a model alone.

        Takes transformers' ``adapter_name`` and ``adapter_kwargs`` out of ``kwargs``. Its Auto classes have looked for
        an adapter before: then ``source`` is the base already, and they say where the adapter is.

        Raises:
            CheckpointError: the adapter names no base, or peft is not installed.
        """
        name, options = kwargs.pop("adapter_name", "default"), dict(kwargs.pop("adapter_kwargs", None) or {})
        found = options.pop("_adapter_model_path", None)
        if found is not None:
            where, base = find_folder(found, dict(options)), source
        elif (folder / _CONFIG).is_file():
            where = folder
            base = source if (folder / "config.json").is_file() else read_json(folder / _CONFIG).get(_BASE)
        else:
            return None
        if not base:
            raise CheckpointError(f"{where / _CONFIG} names no {_BASE}, which the adapter is of")
        if not is_peft_available():
            raise CheckpointError(f'{where} holds an adapter, which peft loads: pip install "modelwright[peft]"')
        return cls(where, base, name, {key: value for key, value in options.items() if value is not None})

    @property
    def is_apart(self) -> bool:
        """Whether its folder holds the adapter alone, and the base is somewhere else."""
        return not (self.folder / "config.json").is_file() or Path(self.base).resolve() != self.folder.resolve()

    def upon(self, base: Any) -> Any:
        """What ``from_pretrained`` returns for the base, with the adapter; it then is told of the adapter's tensors."""
        model, *info = base if isinstance(base, tuple) else (base,)
        found = model.load_adapter(str(self.folder), adapter_name=self.name, adapter_kwargs=self.options)
        return (model, found.to_dict()) if info else model


def refuse_dora(folder: str | None) -> None:
    """Raise a CheckpointError where a folder holds DoRA, of which transformers' own road reads no magnitudes."""
    path = None if folder is None else Path(folder) / _CONFIG
    if path is not None and path.is_file() and read_json(path).get("use_dora"):
        raise CheckpointError(
            f"{folder} holds DoRA, whose magnitudes are not read here: load the base, and give it to peft's "
            "PeftModel.from_pretrained"
        )


_PLACES = ("revision", "subfolder", "_commit_hash", "gguf_file", "variant", "adapter_name", "adapter_kwargs")


def without_places(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` without those that say where in its own repository an adapter is."""
    return {key: value for key, value in kwargs.items() if key not in _PLACES}


_CONFIG, _BASE = "adapter_config.json", "base_model_name_or_path"


def place_adapters(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """See that what a state dict brings of adapters, such as LoRA, finds a module that takes it.

    A pre-hook of torch's ``load_state_dict``, which peft calls without ``strict``: what finds no module is left out.
    Layers that a stack holds are none. And peft (from 0.19 on) reads ``gate_proj``, ``up_proj`` and ``down_proj`` of a
    ``deepseek_v2`` as those of the experts alone, whatever else is called so. LoRA of both gets its place here.

    Raises:
        CheckpointError: an adapter that can have none.
    """
    inside = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
    own = model.state_dict().keys()
    strange = [name for name in inside if name not in own]
    lost = _of_layers(model, strange) if strange else []
    if lost:
        place_lora(model, state, prefix, lost)


def _of_layers(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those that are an adapter's tensors for layers that ``model`` has, as modules or as parts of a stack."""
    layers, modules, found = official_layers(model), dict(model.named_modules()), []
    for name in names:
        layer = next((stem for stem in _stems(name) if stem in layers and layers[stem].index), None)
        if layer is not None and name.removeprefix(f"{layer}.") not in _OWN:
            found.append(name)
            continue
        tensor = _ADAPTER.search(name)
        module = modules.get(name[: tensor.start()].replace(".base_layer", "")) if tensor else None
        if isinstance(module, nn.Linear):
            found.append(name)
        elif isinstance(module, Stacked):
            raise CheckpointError(
                f"an adapter has {name}, of a parameter that target_parameters in adapter_config.json does not name"
            )
    return found


@dataclass(frozen=True)
class PartsAdapter:
    """An adapter of peft's that transformers does not load whole.

    It has LoRA for layers that are parts of a stack here, or that peft would take for such, or layers that were trained
    whole (``modules_to_save``), which transformers before 5.24 leaves as they are.

    Attributes:
        config: peft's.
        state: the adapter's tensors, as peft saves them.
    """

    config: Any
    state: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, folder: str | None, given: Mapping[str, Any]) -> Self | None:
        """The adapter that ``load_adapter`` was asked for; None where transformers loads it as it is.

        Args:
            folder: or a hub id.
            given: other arguments of ``load_adapter``.

        Raises:
            CheckpointError: an adapter of parts of a stack that is not LoRA, or one that the installed peft is too
                old for.
        """
        import peft
        from peft.utils import load_peft_weights

        config, state = given.get("peft_config"), given.get("adapter_state_dict")
        if given.get("hotswap") is True or (folder is None and (config is None or state is None)):
            return None
        places = {key: value for key, value in (given.get("adapter_kwargs") or {}).items() if key in _DOWNLOAD}
        if config is None and folder is not None:
            config = peft.PeftConfig.from_pretrained(folder, **places)
        names, whole = _names_in_stacks(model), bool(getattr(config, "modules_to_save", None))
        if not names and not whole:
            return None
        if state is None and folder is not None:
            state = load_peft_weights(folder, device="cpu", **places)
        assert config is not None and state is not None  # one of the two ways was given
        layers = _layers(state)
        if config.peft_type == peft.PeftType.LORA:
            if any(layer.rpartition(".")[2] in names for layer in layers):
                check_peft()
            elif not whole:
                return None
            return cls(config, state)
        stacked = {layer for layer, place in official_layers(model).items() if place.index}
        for layer in sorted(layers & stacked):
            raise CheckpointError(
                f"the adapter is of type {getattr(config.peft_type, 'value', None)} and has tensors for {layer}, which "
                "is part of a stack here: of those LoRA alone is read"
            )
        return None

    def put_upon(self, model: Any, name: str, trainable: bool) -> LoadStateDictInfo:
        """Load it as transformers' ``load_adapter`` does; ``model`` has no adapter of this ``name``.

        The config then says what was wrapped, so that the adapter can be saved and read again.
        """
        import peft
        from peft.utils.constants import DUMMY_TARGET_MODULES

        modules, parts = dict(model.named_modules()), _names_in_stacks(model)
        config, adapted = self.config, _layers(self.state)
        config.inference_mode = not trainable
        if any(layer.rpartition(".")[2] in parts for layer in adapted):
            layers = {layer for layer in adapted if isinstance(modules.get(layer), nn.Linear | nn.Embedding)}
            alone = {layer for layer in layers if layer.rpartition(".")[2] not in parts}  # others are placed later
            config.target_modules = sorted(alone) or ([] if config.target_parameters else DUMMY_TARGET_MODULES)
            peft.inject_adapter_in_model(config, model, name)
            config.target_modules = alone
        else:
            peft.inject_adapter_in_model(config, model, name)
        state = {key.removeprefix(_PEFT): tensor for key, tensor in self.state.items()}
        result = peft.set_peft_model_state_dict(model, state, name)
        missing = {key for key in result.missing_keys if _ADAPTER.search(key) and f".{name}." in key}
        model._hf_peft_config_loaded = True
        model.train(trainable and model.training)
        if result.unexpected_keys:
            lost, kind = result.unexpected_keys[0], type(model).__name__
            raise CheckpointError(f"the adapter has {lost}, and {kind} has no such layer")
        fields = {"missing_keys": missing, "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        empty = {"conversion_errors": {}, "skipped_pp_keys": set()}
        known = {field.name for field in dataclasses.fields(LoadStateDictInfo)}
        return LoadStateDictInfo(**{key: value for key, value in (fields | empty).items() if key in known})


def _layers(state: Iterable[str]) -> set[str]:
    """The layers that an adapter's tensors are of."""
    found = ((key, _ADAPTER.search(key)) for key in state)
    return {key[: tensor.start()].removeprefix(_PEFT) for key, tensor in found if tensor}


def _names_in_stacks(model: nn.Module) -> set[str]:
    """What layers that are parts of a stack are called: ``gate_proj``, ``w1``."""
    return {layer.rpartition(".")[2] for layer, place in official_layers(model).items() if place.index}


_PEFT = "base_model.model."
_DOWNLOAD = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download", "proxies")


def _stems(name: str) -> list[str]:
    """What stands before each dot of a name."""
    words = name.split(".")
    return [".".join(words[:end]) for end in range(1, len(words))]
