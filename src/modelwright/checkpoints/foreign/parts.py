"""The tensors of a file that stand together for one weight, and what is made of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelwright.checkpoints.shards import FLOATS, INTEGERS, TensorHeader
from modelwright.errors import CheckpointError

_TYPES: Mapping[str, torch.dtype] = {
    **FLOATS,
    **INTEGERS,
    "I32": torch.int32,
    "I64": torch.int64,
    "U32": torch.uint32,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""What parts are stored in, by safetensors' names."""


@dataclass(frozen=True)
class Parts:
    """What stands for the weight ``name``: headers by the ending of their names, such as ``qweight``.

    Attributes:
        section: the `quantization_config`, or what a file beside the config says in its place.
    """

    name: str
    headers: Mapping[str, TensorHeader]
    section: Mapping[str, Any]

    def shape(self, ending: str, dims: int = 2) -> tuple[int, ...]:
        """The shape of a part that must be there.

        Raises:
            CheckpointError: there is none, or it has another number of dimensions.
        """
        if ending not in self.headers:
            raise self.wrong(f"there is no {ending}")
        shape = self.headers[ending].shape
        if len(shape) != dims:
            raise self.wrong(f"{ending} must have {dims} dimensions, and has shape {list(shape)}")
        return shape

    def read(self, ending: str) -> Tensor:
        """A part as it is stored, from its place in the file: to open that for each would take most of the time.

        Raises:
            CheckpointError: it is of a type that nothing here is stored in, or the file cannot be read.
        """
        header = self.headers[ending]
        dtype = _TYPES.get(header.dtype)
        if dtype is None:
            raise self.wrong(f"{ending} is stored as {header.dtype}")
        nbytes = math.prod(header.shape) * dtype.itemsize
        try:
            stored = np.fromfile(header.shard, np.uint8, nbytes, offset=header.start)
        except OSError as error:
            raise CheckpointError(f"{header.shard} cannot be read: {error}") from error
        if stored.size < nbytes:
            raise CheckpointError(f"{header.shard} has become shorter: {header.name} ends beyond it")
        return torch.from_numpy(stored).view(dtype).reshape(header.shape)

    def find(self, ending: str) -> Tensor | None:
        """A part as it is stored, or None where there is none."""
        return self.read(ending) if ending in self.headers else None

    def wrong(self, why: str) -> CheckpointError:
        """The error of parts that do not fit each other."""
        return CheckpointError(f"{self.name} cannot be made of what is stored for it: {why}")


@dataclass(frozen=True)
class Plain:
    """A weight as numbers: its shape, and what reads its parts and makes it in fp32."""

    shape: tuple[int, ...]
    make: Callable[[], Tensor]


@dataclass(frozen=True)
class Format:
    """A way to store a weight.

    Attributes:
        known_by: the ending of the part by which it is known.
        others: endings of the other parts, some of which may not be there, and of what only a product with rounded
            activations would read.
        read: what the parts stand for.
    """

    known_by: str
    others: tuple[str, ...]
    read: Callable[[Parts], Plain]

    @property
    def parts(self) -> tuple[str, ...]:
        """The endings of all parts."""
        return (self.known_by, *self.others)
