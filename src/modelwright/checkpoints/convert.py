"""One checkpoint folder into another: dialect, fused layout, key heads, type and shards; one shard in memory at a time.

Leaves out names (``mindformers.py``), layouts (``layouts.py``) and the reading of the source.
"""

import copy
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelwright.checkpoints.conversion_source import Dropped, Source, TensorReader, open_source
from modelwright.checkpoints.conversion_target import write_config
from modelwright.checkpoints.dialect import GGUF, HUGGING_FACE, TensorDialect, dialect_called
from modelwright.checkpoints.finite import check_range
from modelwright.checkpoints.gguf.file import SUFFIX, names_gguf
from modelwright.checkpoints.gguf.model import write_model
from modelwright.checkpoints.new_folder import check_new, new_folder
from modelwright.checkpoints.recipes import Recipe, chain, pack, pool_heads
from modelwright.checkpoints.shards import PlannedTensor, Progress, dtype_of, parse_size, write_planned
from modelwright.checkpoints.source import choose_dtype
from modelwright.configs import CheckedConfig
from modelwright.configs.field_types import dtype_name
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families import family_of, resolve

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ALWAYS_WIDE = ("e_score_correction_bias", "topk_bias")
"""Ends of the names of tensors that keep their type: a router's bias is too fine for a narrow one."""

ONE_SHARD = "5GB"
"""The size of a weight file where nobody asks for another."""
READ_AT_ONCE = 8
"""Into how many parts the reading for one shard falls, so that little of the source is in memory beside it."""


@dataclass(frozen=True)
class Report:
    """What a conversion wrote.

    Attributes:
        tensors: how many tensors the new checkpoint holds.
        bytes: their size together.
        shards: how many weight files.
        dropped: what of the source it does not hold, and why.
        notes: what a reader of it should know, a sentence each.
    """

    tensors: int
    bytes: int
    shards: int
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...] = ()


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to: str | None = None,
    qkv_concat: bool | None = None,
    num_key_value_heads: int | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = ONE_SHARD,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Convert a checkpoint folder; ``dst`` appears whole at the end, or not at all.

    Args:
        src: a MindFormers folder (YAML and safetensors), its YAML, a Hugging Face folder, a GGUF file, or a hub id.
        dst: a folder that is not there yet, or is empty; for GGUF a file that is not there yet.
        to: ``hf``, ``mindformers`` or ``gguf``; None is GGUF where ``dst`` ends in ``.gguf``, else Hugging Face's
            layout, which is the other one for a MindFormers source. ``hf`` from MindFormers asks for a folder that
            transformers reads, and is refused for experts that none of its models has.
        qkv_concat: fuse (or split) the projections of a MindFormers target; None is as the config says.
        num_key_value_heads: pool the key and value heads down to this many, by their mean.
        dtype: ``float32``, ``float16`` or ``bfloat16`` for every tensor but a router's bias, and ``q8_0`` for the
            matrices of a GGUF file; None keeps each one's own (norms may differ from the rest), and takes the config's,
            bfloat16, for a GGUF file's blocks.
        max_shard_size: bytes of one weight file at most, or text such as ``200MB`` or ``5GiB``.
        allow_pickle: read the tensors of ``pytorch_model.bin`` where there are no safetensors, and nothing else of it.
        progress: called after each tensor with its name, the bytes made so far and the bytes to make.

    Raises:
        CheckpointError: unsafe, damaged or missing files, tensors that do not fit the config, numbers that are not
            finite or not in ``dtype``, a ``dst`` in use.
        ConfigError: a broken rule of the config, or what the target cannot express.
    """
    if to == GGUF or (to is None and names_gguf(dst)):
        if qkv_concat is not None or max_shard_size != ONE_SHARD:
            raise ConfigError("qkv_concat and max_shard_size say how folders are written, and a GGUF file is one file")
        return _to_gguf(src, Path(dst), num_key_value_heads, dtype, allow_pickle, progress)
    target, limit, kind = Path(dst).absolute(), parse_size(max_shard_size), _read_dtype(dtype)
    dialect = dialect_called(to)
    check_new(target)
    source = open_source(src, allow_pickle)
    if target == source.folder.resolve() or source.folder.resolve() in target.resolve().parents:
        raise CheckpointError(f"{target} must not lie inside the folder to convert, {source.folder}")
    config = _target_config(source, dialect, qkv_concat, num_key_value_heads, kind)
    if to == HUGGING_FACE and source.dialect is not None and (beyond := config.beyond_transformers()) is not None:
        raise ConfigError(
            f"no model of transformers has these experts, so it would read a folder of hf without them: {beyond} "
            "(without `to` the folder is written for modelwright alone)"
        )
    recipes = _target_recipes(source, dialect, config, num_key_value_heads)
    with new_folder(target) as folder, TensorReader(source.tensors, limit // READ_AT_ONCE) as reader:
        planned = _plan(recipes, source, reader, kind, progress)
        shards = write_planned(folder, planned, limit)
        dropped = write_config(folder, source, dialect, config)
    size = sum(entry.nbytes for entry in planned)
    return Report(len(planned), size, len(shards), (*source.dropped, *dropped), _notes(dialect, config))


def _notes(dialect: TensorDialect | None, config: CheckedConfig) -> tuple[str, ...]:
    reason = config.not_for_transformers() if dialect is None else None
    return () if reason is None else (f"modelwright reads this checkpoint and transformers cannot: {reason}",)


def _to_gguf(
    src: str | Path,
    dst: Path,
    kv_heads: int | None,
    dtype: str | torch.dtype | None,
    allow_pickle: bool,
    progress: Progress | None,
) -> Report:
    if not names_gguf(dst):
        raise ConfigError(f"the name of a GGUF file must end in {SUFFIX}, and {dst} does not")
    if os.path.lexists(dst):
        raise CheckpointError(f"{dst} is there already; name a new file")
    source = open_source(src, allow_pickle)
    config = _target_config(source, None, None, kv_heads, None)
    recipes = _target_recipes(source, None, config, kv_heads)
    kind = None if dtype is None else str(dtype_name(dtype))
    dst.parent.mkdir(parents=True, exist_ok=True)
    tensors, size = write_model(dst, source, recipes, config, kind, progress)
    return Report(tensors, size, 1, source.dropped)


def _read_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    name = str(dtype_name(dtype))
    if dtype is not None and name not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}", field="dtype")
    return DTYPES.get(name)


def _target_config(
    source: Source,
    dialect: TensorDialect | None,
    qkv_concat: bool | None,
    kv_heads: int | None,
    dtype: torch.dtype | None,
) -> CheckedConfig:
    """The source's config with what was asked for, checked."""
    config: Any = copy.deepcopy(source.config)
    if dialect is not None and source.architecture != dialect.architecture:
        raise ConfigError(
            f"{dialect.title}' layout is written for {dialect.architecture} only, not for {source.architecture}"
        )
    if dialect is not None and source.dialect is None:
        config = dialect.with_sampling(config, source.folder)
    if qkv_concat and dialect is None:
        raise ConfigError("qkv_concat fuses projections in MindFormers' layout; Hugging Face's keeps them apart")
    language = config.get_text_config()
    if qkv_concat is not None:
        language.qkv_concat = qkv_concat
    if kv_heads is not None:
        language.num_key_value_heads = _fewer_heads(language, kv_heads)
    if dtype is not None:
        for part in {id(part): part for part in (config, language)}.values():
            part.dtype = str(dtype).removeprefix("torch.")
    config.check()
    return config


def _fewer_heads(language: Any, kv_heads: int) -> int:
    if "num_key_value_heads" not in language.to_dict():
        raise ConfigError(
            f"num_key_value_heads ({kv_heads}) pools key and value heads, whose number a {language.model_type} config "
            "does not state"
        )
    if resolve(family_of(language).cache)(language).heads is None:
        raise ConfigError(
            f"num_key_value_heads ({kv_heads}) pools key and value heads, and latent attention (use_mla=True) has none"
        )
    heads = language.num_key_value_heads
    if kv_heads < 1 or heads % kv_heads:
        raise ConfigError(
            f"num_key_value_heads ({heads}) must be divisible by the new num_key_value_heads ({kv_heads})"
        )
    return kv_heads


def _target_recipes(
    source: Source, dialect: TensorDialect | None, config: CheckedConfig, kv_heads: int | None
) -> list[Recipe]:
    language: Any = source.config.get_text_config()
    recipes = source.recipes
    if kv_heads is not None and kv_heads != language.num_key_value_heads:
        recipes = pool_heads(recipes, language.num_key_value_heads, kv_heads)
    if dialect is not None:
        recipes = chain(pack(dialect.tensors(config)), recipes)
    return recipes


def _plan(
    recipes: Iterable[Recipe],
    source: Source,
    reader: TensorReader,
    dtype: torch.dtype | None,
    progress: Progress | None,
) -> list[PlannedTensor]:
    """What to write, in order; each tensor is read and made when its turn comes."""
    sizes = {recipe.name: _stored_dtype(recipe, source, dtype) for recipe in recipes}
    total = sum(_nbytes(recipe, sizes[recipe.name]) for recipe in recipes)
    done = 0

    def make(recipe: Recipe) -> Tensor:
        nonlocal done
        made = reader.follow(recipe)
        check_range(recipe.name, made, sizes[recipe.name])
        tensor = made.to(sizes[recipe.name], copy=True, memory_format=torch.contiguous_format)
        done += tensor.nbytes
        if progress is not None:
            progress(recipe.name, done, total)
        return tensor

    return [
        PlannedTensor(recipe.name, _nbytes(recipe, sizes[recipe.name]), partial(make, recipe)) for recipe in recipes
    ]


def _stored_dtype(recipe: Recipe, source: Source, dtype: torch.dtype | None) -> torch.dtype:
    """The type asked for, else the config's for blocks, else the narrowest that holds what the tensor is made of."""
    if dtype is not None and not recipe.name.endswith(ALWAYS_WIDE):
        return dtype
    if any(source.tensors[name].in_blocks for name in recipe.sources):
        return choose_dtype({}, source.config, ())
    kinds = [kind for name in recipe.sources if (kind := dtype_of(source.tensors[name])) is not None]
    return reduce(torch.promote_types, kinds)


def _nbytes(recipe: Recipe, dtype: torch.dtype) -> int:
    return torch.Size(recipe.shape).numel() * dtype.itemsize
