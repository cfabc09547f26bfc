"""YAML files of plain values: what is read and written here is mappings, lists, texts and numbers; it knows no key."""

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from modelwright.configs.base import require, require_shallow
from modelwright.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reads `1e-5` as the number it is in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: str | PathLike) -> dict[str, Any]:
    """The mapping in a YAML file; only plain values are built, whatever tags it holds.

    Raises:
        ConfigError: there is no such file, it is no YAML, or it holds no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    values = parse_yaml(text, str(path))
    require(isinstance(values, dict), f"{path} must hold a mapping, and holds a {type(values).__name__}")
    return values


def parse_yaml(text: str, name: str) -> Any:
    """The value that a text of YAML is; `name` is what it is called in errors.

    Raises:
        ConfigError: it is no YAML, or is nested too deeply.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise ConfigError(f"{name} is nested too deeply") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{name} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if isinstance(value, Mapping | list):
        require_shallow(value, name)
    return value


def write_yaml(values: Mapping[str, Any], path: str | PathLike) -> None:
    """Write a mapping, its keys in their order."""
    Path(path).write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")
