"""A GGUF file as a folder in Hugging Face's layout: its small files written out, its tensors left where they are.

The folder is a temporary one and lives as long as the process. Beside config and tokenizer it holds a file that names
the GGUF file; who asks for the folder's tensors is given those of that file, each made when it is read.
"""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from modelwright.checkpoints.gguf.family import family_in
from modelwright.checkpoints.gguf.file import GgufFile, open_gguf
from modelwright.checkpoints.gguf.tokenizer import TURN_ENDS, read_tokenizer
from modelwright.checkpoints.shards import FLOATS, TensorHeader
from modelwright.errors import CheckpointError

POINTER = ".gguf.json"
"""The file that names the GGUF file; hidden, so that it is not copied with the small files of a checkpoint."""
NAMES = {dtype: name for name, dtype in FLOATS.items()}
ENDS = ("bos_token_id", "eos_token_id")


def folder_of(path: Path) -> Path:
    """The folder for a GGUF file, made by the first call and again where the file has changed.

    Raises:
        CheckpointError: the file cannot be read, or holds a model or a tokenizer that is not known here.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return Path(_made(path.resolve(), stat.st_mtime_ns, stat.st_size).name)


def stands_for_gguf(folder: Path) -> bool:
    """Whether ``folder`` is one of :func:`folder_of`."""
    return (folder / POINTER).is_file()


def headers_in(folder: Path) -> dict[str, TensorHeader]:
    """The official tensors of the file that ``folder`` stands for, by name."""
    path = Path(json.loads((folder / POINTER).read_text("utf-8"))["file"])
    file, config = open_gguf(path), json.loads((folder / "config.json").read_text("utf-8"))
    named = family_in(file).read_tensors(file, config)
    return {
        each.name: TensorHeader(each.name, path, each.shape, NAMES[each.dtype], place, each.make, each.in_blocks)
        for place, each in enumerate(named)
    }


def config_of(path: Path) -> dict[str, Any]:
    """The contents of the ``config.json`` of the model in a GGUF file.

    Raises:
        CheckpointError: as :func:`folder_of`.
    """
    return _config(open_gguf(path))


@cache
def _made(path: Path, changed: int, size: int) -> TemporaryDirectory:
    """The folder for the file as it is now; removed when the process ends."""
    file = open_gguf(path)
    config, (tokenizer, settings) = _config(file), read_tokenizer(file)
    holder = TemporaryDirectory(prefix="modelwright-gguf-")
    folder = Path(holder.name)
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", _generation(file, config))
    _write(folder / "tokenizer_config.json", settings)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / POINTER, {"file": str(path)})
    return holder


def _config(file: GgufFile) -> dict[str, Any]:
    ids = {name: file.metadata.get(f"tokenizer.ggml.{name}") for name in ENDS}
    ids["pad_token_id"] = file.metadata.get("tokenizer.ggml.padding_token_id")
    told = family_in(file).read_config(file) | {name: value for name, value in ids.items() if value is not None}
    return told | {"dtype": str(_natural_dtype(file)).removeprefix("torch.")}


def _generation(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    """The ids in ``config``, and beside the end of a text those of turns and messages that the file has."""
    ids = {name: config[name] for name in (*ENDS, "pad_token_id") if name in config}
    others = [file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in TURN_ENDS]
    ends = dict.fromkeys(end for end in (ids.get("eos_token_id"), *others) if end is not None)
    return ids | ({"eos_token_id": list(ends)} if len(ends) > 1 else {})


def _natural_dtype(file: GgufFile) -> torch.dtype:
    """The type that weights get by default: that of most matrices of the file, bfloat16 where any is in blocks."""
    matrices = [tensor for tensor in file.tensors.values() if len(tensor.shape) > 1]
    if any(tensor.in_blocks for tensor in matrices):
        return torch.bfloat16
    types = [tensor.dtype for tensor in matrices]
    return max(types, key=types.count, default=torch.float32)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
