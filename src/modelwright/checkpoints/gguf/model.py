"""A checkpoint written as one GGUF file: metadata and tensors by its family, tokenizer and template from its folder."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from modelwright.checkpoints.conversion_source import Source, TensorReader
from modelwright.checkpoints.gguf.family import family_for
from modelwright.checkpoints.gguf.file import GgufFile
from modelwright.checkpoints.gguf.names import Named
from modelwright.checkpoints.gguf.same_tokens import check_same_tokens
from modelwright.checkpoints.gguf.tokenizer_metadata import tokenizer_metadata
from modelwright.checkpoints.gguf.write import FILE_TYPES, Progress, write_gguf
from modelwright.checkpoints.recipes import Recipe
from modelwright.checkpoints.shards import dtype_of
from modelwright.checkpoints.source import choose_dtype, read_json
from modelwright.configs import CheckedConfig
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families import family_of

KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""What the numbers of a file can be asked to be, and llama.cpp's names for them."""
READ_AT_ONCE = 1 << 30
"""Bytes of the source that may stay in memory beside the tensor that is made of them."""


def write_model(
    path: Path,
    source: Source,
    recipes: list[Recipe],
    config: CheckedConfig,
    kind: str | None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Write what ``recipes`` make of ``source`` as a GGUF file; returns how many tensors it holds and its size.

    Args:
        config: of the model that is written.
        kind: one of :data:`KINDS`; None is the type of the source's weights.

    Raises:
        CheckpointError: llama.cpp's model cannot say what the config or the tokenizer says; a number that the kind
            cannot hold.
        ConfigError: an unknown kind, or a model of a family that llama.cpp's files are not written of here.
    """
    stored = _kind(kind, source)
    record = family_of(config)
    if record.architectures[source.architecture] != record.architectures[record.causal]:
        raise ConfigError(f"a GGUF file holds a model that draws tokens, and {source.architecture} does not")
    family, values = family_for(record), config.to_dict()
    metadata = {
        "general.name": source.folder.resolve().name,
        "general.file_type": FILE_TYPES[stored],
        "general.quantization_version": 2,
        **family.write_metadata(values),
        **tokenizer_metadata(source.folder, values, _ends(source.folder, values)),
    }
    check_same_tokens(source.folder, GgufFile(path, {"general.architecture": family.architecture} | metadata, {}))
    with TensorReader(source.tensors, READ_AT_ONCE) as reader:
        official = [_named(recipe, source, reader) for recipe in recipes]
        tensors = list(family.write_tensors(official, values))
        write_gguf(path, family.architecture, metadata, tensors, stored, progress)
    return len(tensors), path.stat().st_size


def _kind(asked: str | None, source: Source) -> str:
    if asked is None:
        named = str(choose_dtype({}, source.config, source.tensors.values())).removeprefix("torch.")
        return KINDS.get(named, "F32")
    if asked.lower() not in KINDS:
        raise ConfigError(f"dtype must be one of {', '.join(KINDS)} for a GGUF file; got {asked!r}")
    return KINDS[asked.lower()]


def _named(recipe: Recipe, source: Source, reader: TensorReader) -> Named:
    first = dtype_of(source.tensors[recipe.sources[0]])
    if first is None:
        raise CheckpointError(f"{recipe.name} is stored as {source.tensors[recipe.sources[0]].dtype}, not as floats")
    return Named(recipe.name, recipe.shape, first, partial(reader.follow, recipe))


def _ends(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """The tokens that end a text, those of the generation config first."""
    beside = folder / "generation_config.json"
    told = [read_json(beside).get("eos_token_id")] if beside.is_file() else []
    ends = [end for said in (*told, config.get("eos_token_id")) for end in (said if isinstance(said, list) else [said])]
    return [end for end in dict.fromkeys(ends) if isinstance(end, int)]
