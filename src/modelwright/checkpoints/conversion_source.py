"""What a conversion starts from: a folder in either dialect, its config, and its tensors, checked and ready to read."""

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from modelwright.checkpoints.fit import check_fit
from modelwright.checkpoints.mindformers import left_out, mindformers_tensors, recognise, usual_name
from modelwright.checkpoints.recipes import Recipe, copy_of, unpack
from modelwright.checkpoints.shards import INDEX_FILE, SINGLE_FILE, TensorHeader, headers_of, open_shard, read_headers
from modelwright.checkpoints.source import find_folder, read_json
from modelwright.configs import CheckedConfig
from modelwright.configs.mindformers import ARCHITECTURE, merge_run, read_yaml
from modelwright.errors import CheckpointError
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.read import read_config
from modelwright.hf.pretrained import is_quantized
from modelwright.hf.registry import model_class

Dialect = Literal["hf", "mindformers"]
YAMLS = (".yaml", ".yml")
EMBEDDING = "model.tok_embeddings."
"""What every MindFormers checkpoint of a Llama holds and no other does."""
CHECKPOINT_PATH = "checkpoint_name_or_path"
TIED = "tie_word_embeddings: it is the embedding's"


@dataclass(frozen=True)
class Dropped:
    """Something of the source that the new checkpoint does not hold, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Source:
    """A checkpoint to convert.

    Attributes:
        config_file: its ``config.json`` or YAML.
        architecture: the model's class.
        tensors: the weights by the names that ``recipes`` use.
        recipes: what makes every Hugging Face tensor of the model from ``tensors``.
    """

    folder: Path
    dialect: Dialect
    config: CheckedConfig
    config_file: Path
    architecture: str
    tensors: dict[str, TensorHeader]
    recipes: list[Recipe]
    dropped: tuple[Dropped, ...]


def open_source(path: str | Path) -> Source:
    """Look at a folder, a MindFormers YAML beside its weights, or fetch the hub's ``organisation/name``.

    Raises:
        CheckpointError: no weights or no config, unsafe or damaged files, or tensors that do not fit the config.
        ConfigError: the config breaks a rule, or its model type is not one of ours.
    """
    named = Path(path)
    asked = named if named.suffix in YAMLS and named.is_file() else None
    folder = named.parent if asked else find_folder(path, {})
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    found = _read_headers(folder)
    if any(name.startswith(EMBEDDING) for name in found):
        return _mindformers_source(folder, asked or _find_config(folder), found)
    if asked:
        raise CheckpointError(f"{asked} is a MindFormers config, and the weights beside it have Hugging Face names")
    return _hugging_face_source(folder, found)


class TensorReader:
    """Tensors of a source by name, as views of files; files are closed again after ``budget`` bytes were looked at.

    That bounds how much of the source stays in memory; a context manager.
    """

    def __init__(self, tensors: dict[str, TensorHeader], budget: int):
        self._tensors, self._budget, self._read = tensors, budget, 0
        self._stack, self._open = ExitStack(), {}

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def follow(self, recipe: Recipe) -> Tensor:
        """The recipe's tensor, possibly a view of the source."""
        nbytes = sum(self._tensors[name].nbytes for name in set(recipe.sources))
        if self._read + nbytes > self._budget:
            self._close()
        self._read += nbytes
        return recipe.build([self._view(self._tensors[name]) for name in recipe.sources])

    def _view(self, header: TensorHeader) -> Tensor:
        if header.shard not in self._open:
            self._open[header.shard] = self._stack.enter_context(open_shard(header.shard))
        return self._open[header.shard].get_tensor(header.name)

    def _close(self) -> None:
        self._open.clear()
        self._stack.close()
        self._read = 0


def _read_headers(folder: Path) -> dict[str, TensorHeader]:
    """The tensors of the folder; without the official file names, those of all its safetensors files."""
    shards = sorted(folder.glob("*.safetensors"))
    if not shards and any(folder.glob("*.ckpt")):
        raise CheckpointError(
            f"{folder} holds .ckpt weights, which only MindSpore reads; save them as safetensors there"
        )
    if not shards or any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return read_headers(folder)
    return headers_of(shards)


def _find_config(folder: Path) -> Path:
    yamls = sorted(path for path in folder.iterdir() if path.suffix in YAMLS)
    if len(yamls) > 1:
        names = ", ".join(path.name for path in yamls)
        raise CheckpointError(f"{folder} holds several YAML files ({names}); name the one to use as SRC")
    for path in (*yamls, folder / "config.json"):
        if path.is_file():
            return path
    raise CheckpointError(f"{folder} holds MindFormers weights without a config: neither a YAML file nor config.json")


def _mindformers_source(folder: Path, file: Path, found: dict[str, TensorHeader]) -> Source:
    config, forgotten = _read_llama(file)
    reasons = {name: left_out(name) for name in found}
    if config.tie_word_embeddings and "lm_head.weight" in found:
        reasons["lm_head.weight"] = TIED
    kept = {usual_name(name): header for name, header in found.items() if not reasons[name]}
    packing = recognise(config, {name: header.shape for name, header in kept.items()})
    tensors = list(mindformers_tensors(config, packing))
    check_fit(f"MindFormers' {ARCHITECTURE}", kept, {tensor.name: tensor.shape for tensor in tensors})
    dropped = [Dropped(name, reason) for name, reason in reasons.items() if reason]
    return Source(folder, "mindformers", config, file, ARCHITECTURE, kept, unpack(tensors), (*forgotten, *dropped))


def _read_llama(file: Path) -> tuple[LlamaConfig, list[Dropped]]:
    """The config less the path of a checkpoint, which may lie on another machine."""
    values = read_yaml(file) if file.suffix in YAMLS else read_json(file)
    if "model" in values:
        values = merge_run(values)
    config = LlamaConfig.from_dict({"dialect": "mindformers"} | values, checkpoint_name_or_path="")
    path = values.get("checkpoint_name_or_path")
    return config, [Dropped(f"{CHECKPOINT_PATH} ({path})", "the new folder holds the weights")] if path else []


def _hugging_face_source(folder: Path, found: dict[str, TensorHeader]) -> Source:
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} has no config.json")
    kind, config = model_class(read_json(file)), read_config(file)
    if any(is_quantized(header) for header in found.values()):
        raise CheckpointError(f"{folder} is quantized; convert the checkpoint it was made from, then quantize that")
    with torch.device("meta"):
        model = kind(copy.deepcopy(config))
    used = model.match(found)
    read = {header.name for header in used.values()}
    unread = [Dropped(name, f"{kind.__name__} does not read it") for name in found if name not in read]
    tied = [Dropped(name, TIED) for name in used if name in model.tied_names()]
    kept = {name: header for name, header in used.items() if name not in model.tied_names()}
    recipes = [copy_of(name, header.shape) for name, header in kept.items()]
    return Source(folder, "hf", config, file, kind.__name__, kept, recipes, (*unread, *tied))
