"""A MindFormers run file that is read key by key, and what is found wrong or idle on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelwright.configs.base import require
from modelwright.configs.field_types import as_filed, describe, fits, means_none, plain, shown
from modelwright.configs.mindformers_run import as_meant


@dataclass(frozen=True)
class Refusal:
    """A sentence that refuses a run, unless one of the keys `unless` is given beside the file."""

    sentence: str
    unless: tuple[str, ...] = ()


@dataclass
class Reader:
    """The sections of a run, its values by path, and what comes of them.

    Attributes:
        run: the file's values.
        values: keys of a `RunConfig`, by path, with their values.
        idle: paths of the file that change nothing because of other values, each with the reason.
        refusals: what cannot be served.
        asked: the paths that were asked for.
    """

    run: Mapping[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    idle: dict[str, str] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def get(self, path: str, kind: Any, default: Any = None) -> Any:
        """The value at a path, or `default` where the file has none or only a bare `None`.

        Raises:
            ConfigError: it has another type than `kind`, or a section on the way is no mapping.
        """
        self.asked.add(path)
        *sections, key = path.split(".")
        found = self.section(".".join(sections)).get(key)
        if found is None or means_none(found, kind):
            return default
        value = plain(as_filed(found, kind), kind)
        require(fits(value, kind), f"{path} must be {describe(kind)}, got {shown(value)}")
        return value

    def has(self, path: str) -> bool:
        """Whether the file gives something at a path."""
        *sections, key = path.split(".")
        return self.section(".".join(sections)).get(key) is not None

    def section(self, path: str) -> Mapping[str, Any]:
        """The section at a path; an empty one where there is none."""
        found: Any = self.run
        for name in path.split(".") if path else ():
            found = found.get(name)
            found = {} if found is None else found
            require(isinstance(found, Mapping), f"{path} must be a mapping, got {shown(found)}")
        return found

    def entry(self, section: str, kind: str) -> Mapping[str, Any] | None:
        """The entry of a list of callbacks that has the type `kind`, misprints included; None where none has."""
        return next((each for each in self.entries(section) if as_meant(each.get("type")) == kind), None)

    def entries(self, section: str) -> list[Mapping[str, Any]]:
        """The entries of a list such as the callbacks."""
        listed = self.run.get(section) or []
        require(
            isinstance(listed, list) and all(isinstance(each, Mapping) for each in listed),
            f"{section} must be a list of mappings with a type, got {shown(listed)}",
        )
        return listed

    def of_entry(self, section: str, kind: str, key: str, expected: Any, default: Any = None) -> Any:
        """The value of a key of the entry `kind`, as `get`."""
        entry = self.entry(section, kind)
        self.asked.add(f"{section}.{kind}.{key}")
        return default if entry is None else Reader(entry).get(key, expected, default)

    def put(self, path: str, value: Any) -> None:
        """Set a key of the `RunConfig`."""
        self.values[path] = value

    def refuse(self, sentence: str, *unless: str) -> None:
        """Refuse the run, unless one of these keys is given beside the file."""
        self.refusals.append(Refusal(sentence, unless))
