"""`ConfigPart`, a frozen group of settings whose types are checked when it is built; no family's rules here."""

import functools
import inspect
from dataclasses import dataclass, fields
from typing import Any

from modelwright.configs.field_types import describe, fits, plain, shown
from modelwright.errors import ConfigError


@dataclass(frozen=True)
class ConfigPart:
    """A frozen dataclass whose types are checked when it is built; a subclass adds fields and `check_rules`.

    Raises:
        ConfigError: a value has another type than its field, or breaks a rule.
    """

    def __post_init__(self) -> None:
        for name, expected in types_of(type(self)).items():
            value = plain(getattr(self, name), expected)
            if not fits(value, expected):
                raise ConfigError(f"{name} must be {describe(expected)}, got {shown(value)}")
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


@functools.cache
def types_of(cls: type[ConfigPart]) -> dict[str, Any]:
    """Field name to type."""
    names = {each.name for each in fields(cls)}
    owners = [owner for owner in reversed(cls.__mro__) if issubclass(owner, ConfigPart)]
    annotations = [inspect.get_annotations(owner, eval_str=True) for owner in owners]
    return {name: kind for each in annotations for name, kind in each.items() if name in names}
