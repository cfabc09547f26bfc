"""Weights that torch has pickled, of which tensors alone are read: what else a pickle names is refused, and not run.

Only who asks for it by name reads them (``convert``), to write safetensors. Leaves out what the tensors mean.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelwright.checkpoints.shards import FLOATS, INTEGERS, TensorHeader
from modelwright.checkpoints.source import read_json
from modelwright.errors import CheckpointError

PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED = "pytorch_model*.bin"
"""What transformers called weights before it wrote safetensors."""


def holds_pickles_alone(folder: Path) -> bool:
    """Whether a folder's weights are such files and no safetensors."""
    return any(folder.glob(PICKLED)) and not any(folder.glob("*.safetensors"))


def pickled_headers(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of the files in ``folder`` by name, each of which is read when its turn comes.

    Raises:
        CheckpointError: a file is missing, damaged, or holds more than tensors; two hold the same tensor.
    """
    headers: dict[str, TensorHeader] = {}
    words = {dtype: word for word, dtype in (FLOATS | INTEGERS).items()}
    for path in _files(folder):
        for turn, (name, tensor) in enumerate(_tensors(path).items()):
            if name in headers:
                raise CheckpointError(f"tensor {name} is in two files: {headers[name].shard.name} and {path.name}")
            word = words.get(tensor.dtype, str(tensor.dtype))
            headers[name] = TensorHeader(name, path, tuple(tensor.shape), word, turn, tensor.contiguous)
    return headers


def _files(folder: Path) -> list[Path]:
    if (folder / PICKLED_FILE).is_file():
        return [folder / PICKLED_FILE]
    if not (folder / PICKLED_INDEX).is_file():
        raise CheckpointError(f"{folder} holds parts of pickled weights and no {PICKLED_INDEX}, which says of what")
    placed = read_json(folder / PICKLED_INDEX).get("weight_map")
    names = sorted({str(name) for name in placed.values()}) if isinstance(placed, Mapping) else []
    wrong = [name for name in names if not re.fullmatch(r"[^/\\\0]+\.bin", name)]
    if wrong or not names:
        where = folder / PICKLED_INDEX
        raise CheckpointError(f"{where} must place tensors in .bin files beside it, and places them in {wrong}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} of its {len(names)} files: {', '.join(missing[:5])}")
    return [folder / name for name in names]


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """What a file holds, of which a newer one is only read where it is looked at."""
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise CheckpointError(
            f"{path} holds more than tensors{what}, which reading it would run: it is not read"
        ) from error
    except Exception as error:  # torch raises whatever a damaged file leads it to
        raise CheckpointError(f"{path} cannot be read as torch's: {' '.join(str(error).split())}") from error
    if not isinstance(held, Mapping):
        raise CheckpointError(f"{path} must hold tensors by name, and holds a {type(held).__name__}")
    for name, tensor in held.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path} must hold tensors by name, and {name!r:.60} is a {type(tensor).__name__}")
    return held
