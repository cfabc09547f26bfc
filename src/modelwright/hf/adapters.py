"""Adapters of other libraries: folders of peft's that stand for their base, and layers that can have none.

Official layers that are stored here as parts of a stack are no modules: their adapters are refused, by name.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import nn
from transformers.utils.import_utils import is_peft_available

from modelwright.checkpoints.places import places_of
from modelwright.checkpoints.source import find_folder, read_json
from modelwright.errors import CheckpointError

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
            raise CheckpointError(f"{where} holds an adapter, which peft loads: pip install peft")
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


_PLACES = ("revision", "subfolder", "_commit_hash", "gguf_file", "variant", "adapter_name", "adapter_kwargs")


def without_places(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` without those that say where in its own repository an adapter is."""
    return {key: value for key, value in kwargs.items() if key not in _PLACES}


_CONFIG, _BASE = "adapter_config.json", "base_model_name_or_path"


def refuse_lost_adapters(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Raise where a state dict brings adapters, such as LoRA, for official layers that have none to take them.

    A pre-hook of torch's ``load_state_dict``, which peft calls without ``strict``: what finds no module is left out.
    Layers that a stack holds are none. And peft (from 0.19 on) reads ``gate_proj``, ``up_proj`` and ``down_proj`` of a
    ``deepseek_v2`` as those of the experts alone, whatever else is called so.

    Raises:
        CheckpointError: it does.
    """
    inside = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
    own = model.state_dict().keys()
    strange = [name for name in inside if name not in own]
    if not strange:
        return
    places = {name.replace(".base_layer", ""): place for name, place in places_of(model).items()}  # peft's wrappers
    layers = {name.rpartition(".")[0]: place for name, place in places.items()}
    for name in strange:
        layer = next((stem for stem in _stems(name) if stem in layers), None)
        if layer is None or name.removeprefix(f"{layer}.") in _OWN:
            continue
        if layers[layer].index:
            why = "the layer is part of a stack here and has no module"
        elif _ADAPTER.search(name):
            why = "peft has put none there: it reads gate_proj, up_proj and down_proj of some models as experts' alone"
        else:
            continue
        raise CheckpointError(
            f"an adapter of {layer} cannot be loaded, for {why}: merge it into the checkpoint first (got {name})"
        )


def _stems(name: str) -> list[str]:
    """What stands before each dot of a name."""
    words = name.split(".")
    return [".".join(words[:end]) for end in range(1, len(words))]
