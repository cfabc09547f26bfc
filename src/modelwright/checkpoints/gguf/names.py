"""A GGUF file's tensors by their official names, for decoders whose layers are ``blk.N`` there, ``layers.N`` here."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modelwright.checkpoints.gguf.file import GgufFile, GgufTensor
from modelwright.errors import CheckpointError

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class Named:
    """An official tensor: its name, shape and type, what makes it, and whether its file holds it in blocks."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]
    in_blocks: bool = False

    @classmethod
    def of(cls, name: str, tensor: GgufTensor, make: Callable[[], Tensor] | None = None) -> "Named":
        """A file's tensor under its official name, as it is or as ``make`` makes it of the same size."""
        return cls(name, tensor.shape, tensor.dtype, make or tensor.read, tensor.in_blocks)


def named_tensors(
    file: GgufFile, layer: Mapping[str, str], apart_from: set[str]
) -> Iterator[tuple[str, str, GgufTensor]]:
    """Official name, llama.cpp's name of the part (``attn_q``) and tensor, in the order of the file.

    Args:
        layer: the official names of a layer's parts by llama.cpp's.
        apart_from: tensors of the file that are none of the model's weights.

    Raises:
        CheckpointError: the file has a tensor that is none of these.
    """
    for name, tensor in file.tensors.items():
        if name in apart_from:
            continue
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        number, part, kind = match.groups() if match else (None, "", "")
        official = (layer if number is not None else OUTSIDE).get(part)
        if official is None:
            raise CheckpointError(f"{file.path} holds {name}, which no {file.architecture} model has here")
        yield f"{official if number is None else f'model.layers.{number}.{official}'}.{kind}", part, tensor


def foreign_name(official: str, layer: Mapping[str, str]) -> tuple[str, int | None]:
    """llama.cpp's name of an official tensor, and the expert whose part of that tensor it is.

    Raises:
        CheckpointError: llama.cpp has no such tensor.
    """
    base, _, kind = official.rpartition(".")
    for part, name in OUTSIDE.items():
        if base == name:
            return f"{part}.{kind}", None
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", base)
    if match:
        number, own = match.groups()
        expert = re.search(r"(?<=experts\.)\d+(?=\.)", own)
        wanted = own if expert is None else own.replace(f".{expert[0]}.", ".N.", 1)
        for part, name in layer.items():
            if name == wanted:
                return f"blk.{number}.{part}.{kind}", None if expert is None else int(expert[0])
    raise CheckpointError(f"llama.cpp has no name for {official}")
