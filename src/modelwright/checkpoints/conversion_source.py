"""What a conversion starts from: a folder in either dialect, its config, and its tensors, checked and ready to read."""

import copy
import os
import re
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelwright.checkpoints.dialect import YAMLS, TensorDialect, other_dialects
from modelwright.checkpoints.finite import check_finite
from modelwright.checkpoints.fit import check_fit
from modelwright.checkpoints.folder import refuse_adapter
from modelwright.checkpoints.new_folder import COMPANIONS
from modelwright.checkpoints.pickled import PICKLED, holds_pickles_alone, pickled_headers
from modelwright.checkpoints.quantized_model import is_quantized
from modelwright.checkpoints.recipes import Recipe, copy_of, unpack
from modelwright.checkpoints.shards import INDEX_FILE, SINGLE_FILE, TensorHeader, headers_of, open_shard
from modelwright.checkpoints.source import find_folder, read_json, settle_foreign_quantization
from modelwright.checkpoints.ties import settle_ties, without_tied
from modelwright.checkpoints.weights import weights_in
from modelwright.configs import CheckedConfig
from modelwright.errors import CheckpointError
from modelwright.families import model_class
from modelwright.families.read import read_config

AT_ONCE = 2**28
"""Bytes of files that are looked at before they are closed again."""
_OF_ADAPTER = re.compile(r"(^|[._])lora_[abAB](\.|$)")
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
        dialect: another than the official one, which is None.
        config_file: its ``config.json`` or YAML.
        config_as_it_is: whether ``config_file`` says what ``config`` says and nothing of this folder alone.
        architecture: the model's class.
        tensors: the weights by the names that ``recipes`` use.
        recipes: what makes every Hugging Face tensor of the model from ``tensors``.
    """

    folder: Path
    dialect: TensorDialect | None
    config: CheckedConfig
    config_file: Path
    config_as_it_is: bool
    architecture: str
    tensors: dict[str, TensorHeader]
    recipes: list[Recipe]
    dropped: tuple[Dropped, ...]


def open_source(path: str | Path, allow_pickle: bool = False) -> Source:
    """Look at a folder, a YAML of another dialect beside its weights, or fetch the hub's ``organisation/name``.

    Args:
        allow_pickle: read the tensors of ``pytorch_model.bin`` where there are no safetensors.

    Raises:
        CheckpointError: no weights or no config, unsafe or damaged files, or tensors that do not fit the config.
        ConfigError: the config breaks a rule, or its model type is not one of ours.
    """
    named = Path(path)
    asked = named if named.suffix in YAMLS and named.is_file() else None
    folder = named.parent if asked else find_folder(path, {}, COMPANIONS)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    if allow_pickle and not any(folder.glob("*.safetensors")) and not os.path.exists(path):
        folder = find_folder(path, {}, (*COMPANIONS, PICKLED))  # of the hub
    found = pickled_headers(folder) if allow_pickle and holds_pickles_alone(folder) else _read_headers(folder)
    others = other_dialects().values()
    for dialect in others:
        if dialect.holds(found):
            return _other_source(dialect, folder, asked or _find_config(dialect, folder), found)
    if asked:
        titles = " or ".join(dialect.title for dialect in others)
        raise CheckpointError(f"{asked} is a {titles} config, and the weights beside it have Hugging Face names")
    return _hugging_face_source(folder, found)


def official_tensors(folder: Path, config: CheckedConfig) -> dict[str, Tensor] | None:
    """The weights of a folder in another dialect by official names, for a model of ``config``; None of an official one.

    Raises:
        CheckpointError: as `open_source`, but that no config need lie beside the weights.
    """
    found = _read_headers(folder)
    dialect = next((each for each in other_dialects().values() if each.holds(found)), None)
    if dialect is None:
        return None
    source = _source_in(dialect, folder, folder, config, [], found)
    with TensorReader(source.tensors, AT_ONCE) as reader:
        return {recipe.name: reader.follow(recipe).clone() for recipe in source.recipes}


class TensorReader:
    """Tensors of a source by name, as views of files; files are closed again after ``budget`` bytes were looked at.

    That bounds how much of the source stays in memory; a context manager. A tensor that holds a NaN or an infinity is a
    :class:`CheckpointError` that names it.
    """

    def __init__(self, tensors: dict[str, TensorHeader], budget: int):
        self._tensors, self._budget, self._read = tensors, budget, 0
        self._stack, self._open = ExitStack(), {}
        self._checked: set[str] = set()

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
        if header.make is not None:
            tensor = header.make()
            check_finite(header.name, tensor, header.shard)
            return tensor
        if header.shard not in self._open:
            self._open[header.shard] = self._stack.enter_context(open_shard(header.shard))
        tensor = self._open[header.shard].get_tensor(header.name)
        if header.name not in self._checked:
            check_finite(header.name, tensor, header.shard)
            self._checked.add(header.name)
        return tensor

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
        return weights_in(folder)
    return headers_of(shards)


def _find_config(dialect: TensorDialect, folder: Path) -> Path:
    yamls = sorted(path for path in folder.iterdir() if path.suffix in YAMLS)
    if len(yamls) > 1:
        names = ", ".join(path.name for path in yamls)
        raise CheckpointError(f"{folder} holds several YAML files ({names}); name the one to use as SRC")
    for path in (*yamls, folder / "config.json"):
        if path.is_file():
            return path
    raise CheckpointError(
        f"{folder} holds {dialect.title} weights without a config: neither a YAML file nor config.json"
    )


def _other_source(dialect: TensorDialect, folder: Path, file: Path, found: dict[str, TensorHeader]) -> Source:
    config, places = dialect.read_config(file)
    return _source_in(dialect, folder, file, config, places, found)


def _source_in(
    dialect: TensorDialect,
    folder: Path,
    file: Path,
    config: Any,
    places: Collection[str],
    found: dict[str, TensorHeader],
) -> Source:
    forgotten = [Dropped(place, "the new folder holds the weights") for place in places]
    apart = settle_ties(config, dialect.ties, found)
    reasons = {name: dialect.left_out(name) for name in found}
    weights = {dialect.usual_name(name): header for name, header in found.items() if not reasons[name]}
    if pairs := [name for name in weights if _OF_ADAPTER.search(name)]:
        raise CheckpointError(
            f"{folder} holds a LoRA beside the weights ({min(pairs)}): merge it into them where it was trained, and "
            "save them then"
        )
    kept = without_tied(weights, dialect.ties) if config.tie_word_embeddings else weights
    read = {header.name for header in kept.values()}
    reasons |= {header.name: TIED for header in weights.values() if header.name not in read}
    tensors = dialect.tensors(config, {name: header.shape for name, header in kept.items()})
    model = dialect.architecture
    check_fit(f"{dialect.title}' {model}", kept, {tensor.name: tensor.shape for tensor in tensors})
    dropped = [Dropped(name, reason) for name, reason in reasons.items() if reason]
    return Source(
        folder,
        dialect,
        config,
        file,
        not places and apart is None,
        model,
        kept,
        unpack(tensors),
        (*forgotten, *dropped),
    )


def _hugging_face_source(folder: Path, found: dict[str, TensorHeader]) -> Source:
    file = folder / "config.json"
    refuse_adapter(folder)
    if not file.is_file():
        beside = any(path.suffix in YAMLS for path in folder.iterdir())
        titles = " or ".join(dialect.title for dialect in other_dialects().values())
        strange = f", and its weights have names ({min(found)}) that are none of {titles}" if beside and found else ""
        raise CheckpointError(f"{folder} has no config.json{strange}")
    kind, config = model_class(read_json(file)), read_config(file)
    if any(is_quantized(header) for header in found.values()):
        raise CheckpointError(f"{folder} is quantized; convert the checkpoint it was made from, then quantize that")
    stored = settle_foreign_quantization(config, found)
    apart = kind.settle_ties(config, found)
    with torch.device("meta"):
        model = kind(copy.deepcopy(config))
    kept = model.match(found)
    read, tied = {header.name for header in kept.values()}, model.tied_names()
    unread = f"{kind.__name__} does not read it"
    dropped = [Dropped(name, TIED if name in tied else unread) for name in found if name not in read]
    recipes = [copy_of(name, header.shape) for name, header in kept.items()]
    as_it_is = apart is None and not stored
    return Source(folder, None, config, file, as_it_is, kind.__name__, kept, recipes, tuple(dropped))
