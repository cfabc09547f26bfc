"""Where a model is read from and as what: the folder or hub id, its config with overrides, the type of its numbers.

Leaves out the tensors themselves (``shards.py``) and what a class demands of them (``pretrained.py``).
"""

import copy
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from modelwright.checkpoints.dialect import YAMLS, refuse_other_dialects
from modelwright.checkpoints.gguf.file import names_gguf
from modelwright.checkpoints.gguf.folder import folder_of
from modelwright.checkpoints.shards import FileNames, TensorHeader, dtype_of
from modelwright.configs.quantization import (
    foreign_quantization,
    forget_foreign_quantization,
    method_of,
    program_of,
)
from modelwright.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

HUB_FILES = ("*.json", "*.jinja", "*.safetensors")
"""Patterns of what is fetched of a hub's repository: all that is read here of one, and no more."""
HUB_DUPLICATES = ("consolidated*.safetensors", "original/*", "onnx/*")
"""Patterns of the same weights in other formats, which nothing here reads."""
HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
AS_NUMBERS = (
    'the checkpoint is quantized by "{}": its weights are read as the numbers that they stand for, not as they '
    "are stored"
)
"""What is said of a checkpoint of another program, which takes the memory of floats."""
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def find_folder(name: str | Path, kwargs: dict[str, Any], companions: Iterable[str] = ()) -> Path:
    """A local folder as it is, the folder that stands for a GGUF file; anything else is fetched as a hub id.

    Of the hub's files weights are fetched as safetensors only. Takes the hub's arguments, ``subfolder`` and
    ``gguf_file`` (a file's name in the folder) out of ``kwargs``. ``companions`` are patterns of files that are to be
    carried along and not read. With a ``variant`` in ``kwargs`` no other weights are fetched.
    """
    hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
    subfolder, inside = kwargs.pop("subfolder", ""), kwargs.pop("gguf_file", None)
    if names_gguf(name) and not os.path.isdir(name):
        return folder_of(Path(name))
    if inside is not None and os.path.isdir(name):
        return folder_of(Path(name) / subfolder / inside)
    folder = Path(name)
    if not os.path.isdir(folder):  # which knows of names that are too long
        if os.path.isfile(folder) and folder.suffix in YAMLS:
            refuse_other_dialects(folder.parent)
        if os.path.exists(folder) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
            raise CheckpointError(f"{name} is not a folder and not a hub id")
        try:
            which = {"allow_patterns": [*_hub_files(kwargs.get("variant")), *companions]}
            which["ignore_patterns"] = list(HUB_DUPLICATES)
            folder = Path(snapshot_download(str(name), **which, **hub))
        except Exception as error:
            raise CheckpointError(
                f"{name} is not a folder here, and the hub did not answer with it: {_one_line(error)}"
            ) from error
    return folder / subfolder


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a :class:`CheckpointError` that names the file if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, and holds a {type(content).__name__}")
    return content


def read_config(config_class: Any, folder: Path, config: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The config with overrides applied, and what is left of the keyword arguments.

    Args:
        config: a config object, ours or transformers' own, which is copied and overrides nothing; a folder or file to
            read instead of ``folder``'s; or None.

    Raises:
        ConfigError: ``config`` is none of these, or the config breaks a rule.
        CheckpointError: there is no file, or it is damaged.
    """
    if isinstance(config, config_class):
        return copy.deepcopy(config), kwargs
    if (own := own_config(config_class, config)) is not config:
        return own, kwargs
    if not isinstance(config, str | os.PathLike | None):
        name = config_class.__name__
        raise ConfigError(
            f"config must be a {name}, a folder or a file, got a {type(config).__name__}: {name}.from_dict makes one "
            "of a dict of values",
            field="config",
        )
    path = folder if config is None else Path(config)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        refuse_other_dialects(path.parent)
        raise CheckpointError(f"{path.parent} has no {path.name}")
    read_json(path)  # a plain sentence when it is damaged
    dtypes = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if key in kwargs}
    config, rest = config_class.from_pretrained(path, return_unused_kwargs=True, **kwargs)
    return config, rest | dtypes


def own_config(config_class: Any, config: Any) -> Any:
    """A config; where it is transformers' own for the same model, ours with its values."""
    if isinstance(config, config_class) or getattr(config, "model_type", None) != config_class.model_type:
        return config
    return config_class.from_dict(config.to_dict())


def settle_foreign_quantization(config: Any, found: Mapping[str, TensorHeader]) -> bool:
    """Let a config say no longer that another program has quantized a checkpoint of which ``found`` are the numbers.

    Returns:
        Whether it had said so.
    """
    quantized = foreign_quantization(config)
    if quantized is None or not _are_numbers(found):
        return False
    logger.warning(AS_NUMBERS.format(program_of(quantized)))
    forget_foreign_quantization(config)
    return True


def refuse_foreign_quantization(config: Any, found: Mapping[str, TensorHeader]) -> None:
    """Raise a :class:`CheckpointError` where a config says that another program has quantized a checkpoint.

    Not where ``found`` are the numbers that its weights stand for (``foreign``).
    """
    quantized = foreign_quantization(config)
    if quantized is not None and not _are_numbers(found):
        raise CheckpointError(
            f'the checkpoint is quantized by "{method_of(quantized)}" (quantization_config), whose weights modelwright '
            "does not read: take the checkpoint that it was made from, of which modelwright quantize makes int8 or int4"
        )


def _are_numbers(found: Mapping[str, TensorHeader]) -> bool:
    return any(header.in_blocks for header in found.values())


def asked_dtype(kwargs: dict[str, Any]) -> str | None:
    """The plain name of the type asked for; None for ``auto``, the default.

    Looks at ``dtype`` and ``torch_dtype``, its older name, in ``kwargs``, and leaves them there.
    """
    asked = kwargs.get("dtype") if kwargs.get("dtype") is not None else kwargs.get("torch_dtype")
    return None if asked in (None, "auto") else str(_named_dtype(asked)).removeprefix("torch.")


def choose_dtype(kwargs: dict[str, Any], config: Any, headers: Iterable[TensorHeader]) -> torch.dtype:
    """The type to load in: as asked; with ``auto`` the config's, else that of the stored weights.

    Takes ``dtype`` and ``torch_dtype`` out of ``kwargs``.
    """
    asked = asked_dtype(kwargs) or config.dtype or config.get_text_config().dtype
    for key in ("dtype", "torch_dtype"):
        kwargs.pop(key, None)
    if asked is None:
        asked = next((dtype_of(header) for header in headers), None) or torch.float32
    return _named_dtype(asked)


def _named_dtype(asked: Any) -> torch.dtype:
    named = getattr(torch, asked.removeprefix("torch."), None) if isinstance(asked, str) else asked
    if named not in FLOATS:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise ConfigError(f"dtype must be auto or one of {allowed}; got {asked!r}", field="dtype")
    return named


def _hub_files(variant: str | None) -> list[str]:
    """Patterns of what is read of a hub's repository, of all weights or of a variant alone."""
    wanted = "*.safetensors" if variant is None else f"{FileNames.of(variant).stem}*.safetensors"
    return [wanted if pattern == "*.safetensors" else pattern for pattern in HUB_FILES]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
