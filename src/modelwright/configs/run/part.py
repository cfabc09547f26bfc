"""`RunPart`, a section of a run file: built from a mapping, its keys checked, and written again; no section's rules."""

import copy
import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Self, Union, get_args, get_origin

from modelwright.configs.base import MISSPELT
from modelwright.configs.field_types import cut
from modelwright.configs.part import ConfigPart, types_of
from modelwright.errors import ConfigError


@dataclass(frozen=True)
class RunPart(ConfigPart):
    """A `ConfigPart` that is a section of a run file.

    A key that is a word of Python's has an underscore behind it as an attribute: `batch.global_` is the key `global`.
    Mappings and lists of the file become parts and tuples; what was handed in stays as it is.

    Raises:
        ConfigError: a key is unknown, or a value has another type than its field or breaks a rule.
    """

    SHORT: ClassVar[str | None] = None
    """The key that a bare text stands for, where one may stand for the section."""

    @classmethod
    def of(cls, values: Any, name: str) -> Self:
        """The part from a mapping of its keys; `name` is where it stands in the file, for errors."""
        if isinstance(values, cls):
            return values
        if cls.SHORT is not None and isinstance(values, str):
            values = {cls.SHORT: values}
        if not isinstance(values, Mapping):
            raise ConfigError(f"{name} must be a mapping of its keys, got {cut(values)}")
        known = fields_of(cls)
        attributes = {key_of(attribute): attribute for attribute in known}
        for key in values:
            if key not in attributes:
                raise ConfigError(f'unknown key "{_within(name, key)}"; {_hint(key, attributes)}')
        given = {attributes[key]: value for key, value in values.items()}
        needed = [each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING]
        missing = [key_of(attribute) for attribute in needed if attribute not in given]
        if missing:
            raise ConfigError(f"{name or 'a run'} needs {' and '.join(missing)}, and this one has none")
        built = {
            attribute: built_as(copy.deepcopy(value), known[attribute], _within(name, key_of(attribute)))
            for attribute, value in given.items()
        }
        try:
            return cls(**built)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}" if name else str(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """Every key with its value, parts as mappings and tuples as lists; `of` gives an equal part back."""
        return {key_of(each.name): written(getattr(self, each.name)) for each in fields(self) if each.compare}

    def said(self) -> set[str]:
        """The keys whose values are not the usual ones, of a part whose fields all have one."""
        return {key_of(each.name) for each in fields(self) if getattr(self, each.name) != each.default}

    @classmethod
    def paths(cls, within: str = "") -> Iterator[str]:
        """The path of every key, those of parts within by name and dot."""
        for attribute, expected in fields_of(cls).items():
            part = part_in(expected)
            path = f"{within}{key_of(attribute)}"
            yield path
            if part is not None:
                yield from part.paths(f"{path}.")


def fields_of(cls: type[RunPart]) -> dict[str, Any]:
    """The attributes that are keys of a file, with their types; what is not compared is none."""
    kept = {each.name for each in fields(cls) if each.compare}
    return {name: kind for name, kind in types_of(cls).items() if name in kept}


def key_of(attribute: str) -> str:
    """The key of an attribute: without the underscore that a word of Python's needs."""
    return attribute.rstrip("_")


def part_in(expected: Any) -> type[RunPart] | None:
    """The part that a field of this type may hold, alone or several of it."""
    if isinstance(expected, type) and issubclass(expected, RunPart):
        return expected
    inside = get_args(expected) if get_origin(expected) in (Union, types.UnionType, tuple) else ()
    return next((part for option in inside if (part := part_in(option)) is not None), None)


def built_as(value: Any, expected: Any, name: str) -> Any:
    """`value` with its mappings built as the parts that the type `expected` holds."""
    part = part_in(expected)
    if part is None:
        return tuple(value) if isinstance(value, list) and _takes_tuple(expected) else value
    if get_origin(expected) is tuple:
        listed = [value] if isinstance(value, str | Mapping | RunPart) else value
        if not isinstance(listed, list | tuple):
            return value  # of no type that fits, which the check of types says
        return tuple(part.of(each, f"{name}[{place}]") for place, each in enumerate(listed))
    alone = expected is part or (part.SHORT is not None and isinstance(value, str))
    return part.of(value, name) if isinstance(value, Mapping | RunPart) or alone else value


def _takes_tuple(expected: Any) -> bool:
    return any(get_origin(option) is tuple for option in get_args(expected))


def written(value: Any) -> Any:
    """`value` as a file holds it."""
    if isinstance(value, RunPart):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [written(each) for each in value]
    if isinstance(value, Mapping):
        return {key: written(each) for key, each in value.items()}
    return value


def nested(paths: Mapping[str, Any]) -> dict[str, Any]:
    """Values by path, such as `optimizer.lr`, as the mappings of a file."""
    values: dict[str, Any] = {}
    for path, value in paths.items():
        *sections, key = path.split(".")
        inside = values
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[key] = value
    return values


def value_at(values: Any, path: str) -> Any:
    """The value at a path of a file's mappings; None where there is none."""
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def meant(key: Any, known: Any) -> str | None:
    """The one of the `known` names that `key` looks like."""
    close = difflib.get_close_matches(str(key), list(known), n=1, cutoff=MISSPELT)
    return close[0] if close else None


def _within(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def _hint(key: Any, known: Any) -> str:
    close = meant(key, known)
    return f'did you mean "{close}"?' if close else f"it takes {', '.join(known)}"
