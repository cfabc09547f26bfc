"""`ConfigPart`, a frozen group of settings that a config holds, from a dict or an object; no family's rules here."""

import copy
import difflib
import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from modelwright.configs.base import MISSPELT, describe, fits, plain
from modelwright.errors import ConfigError


@dataclass(frozen=True)
class ConfigPart:
    """A frozen dataclass whose types are checked when it is built; a subclass adds fields and `check_rules`.

    Raises:
        ConfigError: a value has another type than its field, or breaks a rule.
    """

    def __post_init__(self) -> None:
        for name, expected in _types(type(self)).items():
            value = plain(getattr(self, name), expected)
            if not fits(value, expected):
                raise ConfigError(f"{name} must be {describe(expected)}, got {value!r} ({type(value).__name__})")
            object.__setattr__(self, name, value)
        self.check_rules()

    def check_rules(self) -> None:
        """The rules between the fields; their types already hold here."""

    def require_at_least(self, least: int | float, *names: str) -> None:
        """Raise `ConfigError` for the first of the fields `names` that is below `least`; `None` passes."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")

    @classmethod
    def read(cls, values: Any, name: str) -> Self:
        """The part from a dict, from an object (its `to_dict()` or public attributes), or from None: the defaults.

        Keys that are no field are refused with a suggestion; `name` is the config's key, for the error.
        """
        if isinstance(values, cls):
            return values
        given = _as_mapping(values, name)
        known = [field.name for field in fields(cls)]
        for key in given:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=MISSPELT)
                hint = f'did you mean "{close[0]}"?' if close else f"it takes {', '.join(known)}"
                raise ConfigError(f'unknown key "{key}" in {name}; {hint}')
        try:
            return cls(**copy.deepcopy(dict(given)))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Every field, parts within as dicts; `read` gives an equal part back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.to_dict() if isinstance(value, ConfigPart) else copy.deepcopy(value)
            for name, value in values.items()
        }

    def changed(self) -> list[str]:
        """The names of the fields that differ from their defaults, in order."""
        default = type(self)()
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(default, field.name)]


def _as_mapping(values: Any, name: str) -> Mapping[str, Any]:
    if values is None:
        return {}
    if isinstance(values, Mapping):
        return values
    if callable(getattr(values, "to_dict", None)):
        return values.to_dict()
    if hasattr(values, "__dict__"):
        return {key: value for key, value in vars(values).items() if not key.startswith("_")}
    raise ConfigError(f"{name} must be a dict, an object or None, got {values!r}")


@functools.cache
def _types(cls: type[ConfigPart]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    owners = [owner for owner in reversed(cls.__mro__) if issubclass(owner, ConfigPart)]
    annotations = [inspect.get_annotations(owner, eval_str=True) for owner in owners]
    return {name: kind for each in annotations for name, kind in each.items() if name in names}
