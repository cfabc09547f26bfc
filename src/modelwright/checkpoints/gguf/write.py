"""Writing a GGUF file, one tensor in memory at a time; what a family's tensors and metadata are is the family's."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelwright.checkpoints.finite import check_range
from modelwright.checkpoints.gguf.file import library
from modelwright.checkpoints.gguf.names import Named
from modelwright.errors import CheckpointError

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""What matrices can be written as, with llama.cpp's numbers; vectors, and rows that no blocks fit, are wider."""
BLOCK = 32
Progress = Callable[[str, int, int], None]


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Sequence[Named],
    kind: str,
    progress: Progress | None = None,
) -> None:
    """Write ``path``, which appears when it is whole.

    Args:
        metadata: beside ``general.architecture``; numbers are written as 32 bits, lists as arrays of one type.
        tensors: under llama.cpp's names, outermost dimension first.
        kind: one of :data:`FILE_TYPES`, the type of matrices; vectors and routers are written in float32.
        progress: called after each tensor with its name, the bytes written so far and the bytes to write.

    Raises:
        CheckpointError: a number that the kind cannot hold, or the file cannot be written.
    """
    gguf = library()
    part = path.with_name(f".{path.name}.part")
    writer = gguf.GGUFWriter(part, architecture)
    try:
        for key, value in metadata.items():
            _add(writer, gguf.GGUFValueType, key, value)
        kinds = [_kind_of(tensor, kind) for tensor in tensors]
        for tensor, own in zip(tensors, kinds, strict=True):
            stored = gguf.GGMLQuantizationType[own]
            writer.add_tensor_info(tensor.name, *_described(tensor.shape, own), stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total = sum(_described(tensor.shape, own)[-1] for tensor, own in zip(tensors, kinds, strict=True))
        done = 0
        for tensor, own in zip(tensors, kinds, strict=True):
            data = _encoded(tensor, own)
            writer.write_tensor_data(data)
            done += data.nbytes
            if progress is not None:
                progress(tensor.name, done, total)
        writer.close()
        os.replace(part, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _kind_of(tensor: Named, kind: str) -> str:
    if len(tensor.shape) < 2 or "ffn_gate_inp" in tensor.name:
        return "F32"
    return "F16" if kind == "Q8_0" and tensor.shape[-1] % BLOCK else kind


def _described(shape: tuple[int, ...], kind: str) -> tuple[tuple[int, ...], Any, int]:
    """Shape, numpy type and bytes of a tensor as the writer wants them: blocks and bfloat16 as bytes."""
    count = math.prod(shape)
    if kind == "Q8_0":
        row = shape[-1] // BLOCK * (BLOCK + 2)
        return (*shape[:-1], row), np.dtype(np.uint8), count // BLOCK * (BLOCK + 2)
    if kind == "BF16":
        return (*shape[:-1], 2 * shape[-1]), np.dtype(np.uint8), 2 * count
    return shape, np.dtype(np.float32 if kind == "F32" else np.float16), count * (4 if kind == "F32" else 2)


def _encoded(tensor: Named, kind: str) -> np.ndarray:
    values = tensor.make()
    if kind == "BF16":
        return values.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    if kind == "Q8_0":
        return library().quantize(values.float().contiguous().numpy(), library().GGMLQuantizationType.Q8_0)
    if kind == "F16":
        check_range(tensor.name, values, torch.float16)
        return values.to(torch.float16).contiguous().numpy()
    return values.float().contiguous().numpy()


def _add(writer: Any, types: Any, key: str, value: Any) -> None:
    if isinstance(value, list | tuple):
        writer.add_array(key, list(value))
        return
    kinds = {bool: types.BOOL, int: types.UINT32, float: types.FLOAT32, str: types.STRING}
    writer.add_key_value(key, value, kinds[type(value)])
