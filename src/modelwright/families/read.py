"""One way from a file to a checked configuration of any family; it looks at no weights and at no network."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

from modelwright.configs.base import CheckedConfig, require
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.config.dialects import speaks_mindformers
from modelwright.families.llama.config.names import MINDFORMERS

CONFIGS: dict[str, type[CheckedConfig]] = {
    "deepseek_v2": DeepseekV2Config,
    "deepseek_vl_v2": DeepseekVLV2Config,
    "imagegpt": ImageGPTConfig,
    "llama": LlamaConfig,
    "mistral": LlamaConfig,
}
"""The config class of each `model_type` that a file may name."""
YAMLS = (".yaml", ".yml")


def read_config(path: str | PathLike) -> CheckedConfig:
    """The checked configuration in a `config.json`, in a MindFormers YAML, or in the folder that holds one.

    A folder's `config.json` is taken before its YAML. JSON that holds a run, or MindFormers' names and no `model_type`,
    is the model of a MindFormers run, in MindFormers' dialect.

    Raises:
        ConfigError: there is no such file, it cannot be read, its family is none of ours, or it breaks a rule.
    """
    file = _find(Path(path))
    if file.suffix in YAMLS:
        return LlamaConfig.from_mindformers(file)
    values = _read_json(file)
    if "model" in values and "model_type" not in values:
        return LlamaConfig.from_mindformers(values)
    if "model_type" not in values and speaks_mindformers(values):
        return LlamaConfig.from_dict({"dialect": MINDFORMERS} | values)
    return _config_class(values, file).from_dict(values)


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    require(path.is_dir(), f"{path} is neither a file nor a folder")
    if (path / "config.json").is_file():
        return path / "config.json"
    found = sorted(file for file in path.iterdir() if file.suffix in YAMLS)
    names = ", ".join(file.name for file in found) or "neither"
    require(len(found) == 1, f"{path} must hold a config.json or one YAML file, and holds {names}")
    return found[0]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read as JSON: {' '.join(str(error).split())}") from error
    require(isinstance(values, dict), f"{file} must hold a JSON object, and holds a {type(values).__name__}")
    return values


def _config_class(values: dict[str, Any], file: Path) -> type[CheckedConfig]:
    kind = values.get("model_type")
    if kind not in CONFIGS:
        raise ConfigError(f"{file} has model_type {kind!r}; it must be one of {', '.join(CONFIGS)}")
    return CONFIGS[kind]
