"""One way from a file to a checked configuration of any family; it looks at no weights and at no network."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelwright.configs.base import CheckedConfig, require
from modelwright.errors import ConfigError
from modelwright.families import Dialect, families, find_family, resolve

YAMLS = (".yaml", ".yml")


def read_config(path: str | os.PathLike) -> CheckedConfig:
    """The checked configuration in a `config.json`, in a MindFormers YAML, or in the folder that holds one.

    A folder's `config.json` is taken before its YAML. JSON that holds a run, or MindFormers' names and no `model_type`,
    is the model of a MindFormers run, in MindFormers' dialect.

    Raises:
        ConfigError: there is no such file, it cannot be read, its family is none of ours, or it breaks a rule.
    """
    file = _find(Path(path))
    if file.suffix in YAMLS:
        return resolve(_dialect_of_runs().read_config)(file)
    return config_of(_read_json(file), str(file))


def config_of(values: Mapping[str, Any], name: str = "the config") -> CheckedConfig:
    """The checked configuration of what a `config.json` holds, or the model of a MindFormers run, flat or as a run.

    Args:
        values: as a file would hold them; a flat one of MindFormers' says so by its `dialect`, or by its names.
        name: what the values are called in errors.

    Raises:
        ConfigError: their family is none of ours, or they break a rule.
    """
    values = dict(values)
    if "model" in values and "model_type" not in values:
        return resolve(_dialect_of_runs().read_config)(values)
    for family in families():
        dialect = family.dialect
        if dialect is None or "model_type" in values:
            continue
        if values.get("dialect") == dialect.name:
            stated = {key: value for key, value in values.items() if key != "dialect"}
            return resolve(dialect.read_config)({"model": {"model_config": stated}})
        if resolve(dialect.speaks)(values):
            return family.config_class.from_dict({"dialect": dialect.name} | values)
    return _config_class(values, name).from_dict(values)


def _dialect_of_runs() -> Dialect:
    """The dialect whose files describe a whole run, which a YAML is and a JSON with a ``model`` in it."""
    return next(family.dialect for family in families() if family.dialect is not None)


def _find(path: Path) -> Path:
    if os.path.isfile(path):  # which knows of names that are too long
        return path
    require(os.path.isdir(path), f"{path} is neither a file nor a folder")
    if (path / "config.json").is_file():
        return path / "config.json"
    found = sorted(file for file in path.iterdir() if file.suffix in YAMLS)
    names = ", ".join(file.name for file in found) or "neither"
    require(len(found) == 1, f"{path} must hold a config.json or one YAML file, and holds {names}")
    return found[0]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read as JSON: {' '.join(str(error).split())}") from error
    require(isinstance(values, dict), f"{file} must hold a JSON object, and holds a {type(values).__name__}")
    return values


def _config_class(values: dict[str, Any], name: str) -> type[CheckedConfig]:
    """The class that reads `values`, by their architecture or type."""
    family = find_family(values)
    if family is None:
        kinds = ", ".join(kind for family in families() for kind in family.model_types)
        raise ConfigError(f"{name} has model_type {values.get('model_type')!r}; it must be one of {kinds}")
    return family.config_class
