"""A GGUF file opened for reading: its metadata as plain values, and its tensors, each read when it is asked for."""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelwright.checkpoints.gguf.header import DamagedError, Described, read_header
from modelwright.errors import CheckpointError

SUFFIX = ".gguf"
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that are read as they are stored."""
BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
"""Types that are read as the float32 numbers which their blocks stand for."""
THREADS = 4
AT_ONCE = 1 << 18
"""Numbers that a thread makes of blocks at a time: few enough that what it writes meanwhile stays in the cache."""


def names_gguf(path: str | Path) -> bool:
    """Whether a path is that of a GGUF file by its end, in small letters or capitals."""
    return Path(path).suffix.lower() == SUFFIX


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file: its name there, its shape with the outermost dimension first, its type, its first byte."""

    path: Path
    name: str
    shape: tuple[int, ...]
    type: str
    start: int

    @property
    def dtype(self) -> torch.dtype:
        """The type that :meth:`read` gives."""
        return FLOATS.get(self.type, torch.float32)

    @property
    def in_blocks(self) -> bool:
        """Whether it is stored more coarsely than its type says."""
        return self.type in BLOCKS

    def read(self, part: int | None = None) -> Tensor:
        """The numbers, in memory of their own: floats in the type of the file, blocks in float32.

        Args:
            part: the one to read of those that the first dimension counts; None reads all.
        """
        shape = self.shape if part is None else self.shape[1:]
        nbytes = _stored_bytes(shape, self.type)
        try:
            stored = np.fromfile(self.path, np.uint8, nbytes, offset=self.start + (part or 0) * nbytes)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error
        if stored.size < nbytes:
            raise CheckpointError(f"{self.path} has become shorter: {self.name} ends beyond it")
        if self.in_blocks:
            return torch.from_numpy(_numbers_of(stored, self.type)).reshape(shape)
        return torch.from_numpy(stored).view(self.dtype).reshape(shape)


@dataclass(frozen=True)
class GgufFile:
    """What a file holds.

    Attributes:
        path: the file.
        metadata: numbers, booleans, texts and lists of them, by key.
        tensors: by name.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the kind of model."""
        return str(self.metadata.get("general.architecture", ""))

    def integer(self, key: str, otherwise: int | None = None) -> int:
        """A whole number of the architecture's, such as ``llama.block_count`` for ``block_count``.

        Raises:
            CheckpointError: it is missing and there is nothing to take otherwise, or it is no whole number.
        """
        return self._setting(key, int, "a whole number", otherwise)

    def number(self, key: str, otherwise: float | None = None) -> float:
        """As :meth:`integer`: the float that was meant, 1e-05 and not the float32 9.999999747378752e-06."""
        return float(f"{self._setting(key, float, 'a number', otherwise):.7g}")

    def word(self, key: str, otherwise: str | None = None) -> str:
        """As :meth:`integer`, for a text."""
        return self._setting(key, str, "a text", otherwise)

    def tensor(self, name: str) -> GgufTensor:
        """The tensor of that name, which every model of its kind has; a CheckpointError where it is not there."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} holds no {name}")
        return self.tensors[name]

    def _setting(self, key: str, kind: type, what: str, otherwise: Any) -> Any:
        key = f"{self.architecture}.{key}"
        value = self.metadata.get(key, otherwise)
        if value is None:
            raise CheckpointError(f"{self.path} has no {key}, which its config needs")
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]  # one for each layer, and the same for all
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise CheckpointError(f"{self.path}: {key} must be {what}, not {value!r:.60}")
        return value


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF file; its tensors stay on disk until they are read.

    Raises:
        CheckpointError: the ``gguf`` package is missing, or the file is damaged, cut short, one of several parts, no
            model, or holds a tensor of a type that is not read here.
    """
    library()
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            metadata, described = read_header(file, size)
    except DamagedError as error:
        raise CheckpointError(f"{path} {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    parts, kind = metadata.get("split.count", 1), metadata.get("general.type", "model")
    if parts != 1:
        raise CheckpointError(f"{path} is one of {parts} parts; join them with llama.cpp's gguf-split --merge")
    if kind != "model":
        raise CheckpointError(f"{path} holds no model: its general.type is {kind!r}")
    return GgufFile(path, metadata, {name: _checked(path, name, each, size) for name, each in described.items()})


def library() -> Any:
    """The ``gguf`` package; a CheckpointError that says how to get it where it is missing."""
    try:
        return import_module("gguf")
    except ModuleNotFoundError as error:
        raise CheckpointError('GGUF files need the gguf package: pip install "modelwright[gguf]"') from error


def _checked(path: Path, name: str, described: Described, size: int) -> GgufTensor:
    """The tensor that a header describes, if it is of a type that is read here and wholly in the file."""
    types = {member.value: member.name for member in library().GGMLQuantizationType}
    type_ = types.get(described.type, f"number {described.type}")
    if type_ not in FLOATS and type_ not in BLOCKS:
        known = ", ".join((*FLOATS, *BLOCKS))
        raise CheckpointError(f"{path}: {name} is of type {type_}; the types read here are {known}")
    block, _ = _block(type_)
    if not described.shape or 0 in described.shape or described.shape[-1] % block:
        raise CheckpointError(
            f"{path}: {name} has shape {list(described.shape)}; {type_} needs rows of a multiple of {block}"
        )
    if described.start + _stored_bytes(described.shape, type_) > size:
        raise CheckpointError(f"{path} is cut short: {name} ends beyond its {size} bytes")
    return GgufTensor(path, name, described.shape, type_, described.start)


def _block(type_: str) -> tuple[int, int]:
    """The numbers in a block, and its bytes."""
    gguf = library()
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_]]


def _stored_bytes(shape: tuple[int, ...], type_: str) -> int:
    block, nbytes = _block(type_)
    return math.prod(shape) // block * nbytes


def _numbers_of(stored: np.ndarray, type_: str) -> np.ndarray:
    """The float32 numbers of blocks, made by several threads."""
    block, nbytes = _block(type_)
    gguf = library()
    kind = gguf.GGMLQuantizationType[type_]
    made = np.empty(stored.size // nbytes * block, np.float32)
    blocks = AT_ONCE // block

    def make(first: int) -> None:
        taken = stored[first * nbytes : (first + blocks) * nbytes].reshape(1, -1)
        made[first * block : (first + blocks) * block] = gguf.dequantize(taken, kind).reshape(-1)

    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(make, range(0, stored.size // nbytes, blocks)):
            pass  # which raises what a thread raised
    return made
