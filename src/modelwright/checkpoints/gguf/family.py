"""`GgufFamily`, what reading and writing GGUF asks of a family, which the record names."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modelwright.checkpoints.gguf.file import GgufFile
from modelwright.checkpoints.gguf.names import Named
from modelwright.errors import CheckpointError
from modelwright.families import Family, families, resolve

Config = Mapping[str, Any]
"""The contents of a ``config.json``."""


@dataclass(frozen=True)
class GgufFamily:
    """How llama.cpp writes the config and the tensors of a family.

    Attributes:
        architecture: llama.cpp's name of it, which begins the keys of its metadata.
        read_config: ``(file) -> config``; a CheckpointError for what the family has not.
        read_tensors: ``(file, config)`` to the official tensors.
        write_metadata: ``(config)`` to the metadata; a CheckpointError for what llama.cpp has not.
        write_tensors: ``(official tensors, config)`` to those of a file.
    """

    architecture: str
    read_config: Callable[[GgufFile], dict[str, Any]]
    read_tensors: Callable[[GgufFile, Config], Iterator[Named]]
    write_metadata: Callable[[Config], dict[str, Any]]
    write_tensors: Callable[[Iterable[Named], Config], Iterator[Named]]


def family_in(file: GgufFile) -> GgufFamily:
    """How to read ``file``; a CheckpointError where no family here has its architecture."""
    known = [resolve(family.gguf) for family in families() if family.gguf is not None]
    for each in known:
        if each.architecture == file.architecture:
            return each
    names = " and ".join(each.architecture for each in known)
    raise CheckpointError(f"{file.path} has the architecture {file.architecture!r}; {names} are read from GGUF")


def family_for(family: Family) -> GgufFamily:
    """How to write a model of ``family``; a CheckpointError where that is not known here."""
    if family.gguf is None:
        able = " and ".join(each.name for each in families() if each.gguf is not None)
        raise CheckpointError(f"GGUF files are written of {able}, not of {family.name}")
    return resolve(family.gguf)
