"""`FilePart`, a section of a config file: read from a dict or an object, kept whole, and written again."""

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self

from modelwright.configs.base import MISSPELT
from modelwright.configs.field_types import as_filed, means_none
from modelwright.configs.part import ConfigPart, types_of
from modelwright.errors import ConfigError


@dataclass(frozen=True)
class FilePart(ConfigPart):
    """A `ConfigPart` that is a section of a file.

    `unknown_keys` are the keys of a file that are no field (`read_file`): they are written again and change nothing.
    """

    unknown_keys: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    IDLE: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """The fields that nothing reads on torch, each with the reason."""
    PARTS: ClassVar[Mapping[str, "type[FilePart]"]] = MappingProxyType({})
    """The fields that are sections themselves."""
    SHORT: ClassVar[str | None] = None
    """The field that a bare bool or list stands for, where one may stand for the section."""

    def __post_init__(self) -> None:
        for name, part in self.PARTS.items():
            object.__setattr__(self, name, part.read(getattr(self, name), name))
        super().__post_init__()

    @classmethod
    def read(cls, values: Any, name: str) -> Self:
        """The part from a dict, from an object (its `to_dict()` or public attributes), or from None: the defaults.

        Keys that are no field are refused with a suggestion; `name` is the config's key, for the error.
        """
        if isinstance(values, cls):
            return values
        given = dict(cls._as_mapping(values, name))
        for key in given:
            if key not in cls.names():
                close = cls.meant(key)
                hint = f'did you mean "{close}"?' if close else f"it takes {', '.join(cls.names())}"
                raise ConfigError(f'unknown key "{key}" in {name}; {hint}')
        try:
            return cls(**copy.deepcopy(given))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error

    @classmethod
    def read_file(cls, values: Any, name: str) -> Self:
        """As `read`, of a file that another program wrote: keys that are no field are kept in `unknown_keys`.

        A whole float is taken as the int that its field means, and the text None as nothing said where no text is.
        """
        if isinstance(values, cls):
            return values
        types = types_of(cls)
        stated = cls._as_mapping(values, name).items()
        given = {key: as_filed(value, types.get(key)) for key, value in stated if not _unsaid(key, value, types)}
        unknown = {str(key): given.pop(key) for key in list(given) if key not in cls.names()}
        for key, part in cls.PARTS.items():
            if key in given:
                given[key] = part.read_file(given[key], f"{name}: {key}")
        return replace(cls.read(given, name), unknown_keys=unknown)

    def changed_by(self, changes: Mapping[str, Any], name: str) -> Self:
        """This part with other values of some fields, which a person typed; the keys kept of a file stay."""
        fields_of_it = {each: getattr(self, each) for each in self.names()}
        return replace(self.read(fields_of_it | dict(changes), name), unknown_keys=self.unknown_keys)

    @classmethod
    def names(cls) -> list[str]:
        """The names of the fields, in order."""
        return [each.name for each in fields(cls) if each.name != "unknown_keys"]

    @classmethod
    def meant(cls, key: Any) -> str | None:
        """The field that `key` looks like, if it looks like one."""
        close = difflib.get_close_matches(str(key), cls.names(), n=1, cutoff=MISSPELT)
        return close[0] if close else None

    def to_dict(self) -> dict[str, Any]:
        """Every field, parts within as dicts, and the keys kept of a file; `read_file` gives an equal part back."""
        values = {name: getattr(self, name) for name in self.names()}
        return {
            name: value.to_dict() if isinstance(value, FilePart) else copy.deepcopy(value)
            for name, value in values.items()
        } | copy.deepcopy(dict(self.unknown_keys))

    def idle(self) -> dict[str, str]:
        """The fields that nothing reads, those of parts within by name and dot, each with the reason."""
        found = dict(self.IDLE)
        for name in self.PARTS:
            found |= {f"{name}.{inside}": reason for inside, reason in getattr(self, name).idle().items()}
        return found

    def strange(self) -> dict[str, str]:
        """The keys kept of a file, those of parts within by name and dot, each with what it may have meant."""
        found = {key: _unknown(self.meant(key)) for key in self.unknown_keys}
        for name in self.PARTS:
            found |= {f"{name}.{inside}": reason for inside, reason in getattr(self, name).strange().items()}
        return found

    @classmethod
    def _as_mapping(cls, values: Any, name: str) -> Mapping[str, Any]:
        if cls.SHORT is not None and isinstance(values, bool | list):
            return {cls.SHORT: values}
        if values is None:
            return {}
        if isinstance(values, Mapping):
            return values
        if callable(getattr(values, "to_dict", None)):
            return values.to_dict()
        if hasattr(values, "__dict__"):
            return {key: value for key, value in vars(values).items() if not key.startswith("_")}
        raise ConfigError(f"{name} must be a dict, an object or None, got {values!r}")


def _unsaid(key: Any, value: Any, types: Mapping[str, Any]) -> bool:
    return key in types and means_none(value, types[key])


def _unknown(meant: str | None) -> str:
    return "no field" if meant is None else f'no field; did you mean "{meant}"?'
