"""Where settings come from besides flags: variables and a YAML file, by the flags' names. Flag > variable > file."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modelwright.errors import ConfigError

PREFIX = "MODELWRIGHT_SERVE_"
_KUBERNETES = ("_SERVICE_HOST", "_SERVICE_PORT", "_TCP", "_UDP", "_TCP_PROTO", "_TCP_PORT", "_TCP_ADDR")
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")


@dataclass(frozen=True)
class Flag:
    """One option of the command: a name like ``--max-batch``, and whether it is a switch or may be given again."""

    name: str
    switch: bool = False
    repeats: bool = False

    @property
    def key(self) -> str:
        """In a file; there ``max_batch`` is understood, too."""
        return self.name.removeprefix("--")

    @property
    def variable(self) -> str:
        return PREFIX + self.key.replace("-", "_").upper()


@dataclass(frozen=True)
class Found:
    """A value that was set elsewhere than by a flag: which flag it stands for, its texts, and where it stands."""

    flag: Flag
    values: tuple[str, ...]
    source: str

    def words(self) -> list[str]:
        """What would be typed for it."""
        if not self.flag.switch:
            return [f"{self.flag.name}={value}" for value in self.values]
        (value,) = self.values
        if value.strip().lower() in _YES:
            return [self.flag.name]
        if value.strip().lower() in _NO:
            return []
        raise ConfigError(f"{self.source} must be true or false, got {value!r:.80}")


def gather(
    flags: Collection[Flag], given: Collection[str], environ: Mapping[str, str], file: Path | None
) -> list[Found]:
    """What variables and the file say about the flags that were not `given`, each flag once.

    Raises:
        ConfigError: a variable or a key that stands for no flag, or a file that is no mapping of YAML.
    """
    from_variables = {found.flag: found for found in _variables(flags, environ)}
    from_file = {} if file is None else {found.flag: found for found in _keys(flags, file)}
    return [found for flag, found in (from_file | from_variables).items() if flag.name not in given]


def _variables(flags: Collection[Flag], environ: Mapping[str, str]) -> Iterator[Found]:
    known = {flag.variable: flag for flag in flags}
    for name, value in environ.items():
        if not name.startswith(PREFIX):
            continue
        if name not in known:
            raise ConfigError(f"the variable {name} stands for no flag{_nearest(name, known)}{_by_kubernetes(name)}")
        if name.endswith("_PORT") and value.startswith("tcp://"):
            raise ConfigError(f"the variable {name} must be a number, got {value!r:.80}{_by_kubernetes('_TCP')}")
        flag = known[name]
        yield Found(flag, tuple(value.split()) if flag.repeats else (value,), f"the variable {name}")


def _keys(flags: Collection[Flag], file: Path) -> Iterator[Found]:
    known = {flag.key: flag for flag in flags}
    seen: dict[str, str] = {}
    for key, value in _read(file).items():
        name = str(key).replace("_", "-")
        if name not in known:
            raise ConfigError(f"the key {str(key)!r:.80} of {file} stands for no flag{_nearest(name, known)}")
        if name in seen:
            raise ConfigError(f"the keys {seen[name]!r} and {str(key)!r} of {file} are the same")
        seen[name] = str(key)
        flag, source = known[name], f"the key {key} of {file}"
        if value is not None:
            yield Found(flag, tuple(_texts(flag, value, source)), source)


def _texts(flag: Flag, value: Any, source: str) -> Iterator[str]:
    values = value if isinstance(value, list) else [value]
    if isinstance(value, dict | list) and not (isinstance(value, list) and flag.repeats):
        raise ConfigError(f"{source} must be one value, got {'an object' if isinstance(value, dict) else 'a list'}")
    for each in values:
        if isinstance(each, bool) != flag.switch and not (flag.switch and isinstance(each, str)):
            raise ConfigError(f"{source} must {'' if flag.switch else 'not '}be true or false, got {each!r:.80}")
        if not isinstance(each, str | int | float):
            raise ConfigError(f"{source} must be text or a number, got {each!r:.80}")
        yield str(each)


def _read(file: Path) -> dict[Any, Any]:
    try:
        content = yaml.load(file.read_text("utf-8-sig"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigError(f"config {file} cannot be read: {reason}", field="config") from error
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:  # a key may be a list, a date none
        raise ConfigError(f"config {file} is no YAML: {' '.join(str(error).split())}", field="config") from error
    if not isinstance(content, dict | None):
        raise ConfigError(f"config {file} must hold keys with values, like port: 8000", field="config")
    return content or {}


class _Loader(yaml.SafeLoader):
    """YAML that says where a key is given twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]  # pyright: ignore[reportUnknownMemberType]
    twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
    if twice is not None:
        raise yaml.YAMLError(f"the key {twice!r} is given twice")
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _by_kubernetes(name: str) -> str:
    """Where Kubernetes sets such variables, for a service that is called modelwright-serve."""
    if not name.endswith(_KUBERNETES):
        return ""
    return ": Kubernetes sets it for a service called modelwright-serve, unless enableServiceLinks is false"
