"""Run files: what they inherit and what overrides change; it knows only the keys that this needs."""

import copy
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from modelwright.configs.base import require
from modelwright.configs.run.batches import SourcePart
from modelwright.configs.run.mindformers import is_mindformers, translate
from modelwright.configs.run.origin import Origin, paths_of
from modelwright.configs.run.part import meant
from modelwright.configs.yaml_file import parse_yaml, read_yaml
from modelwright.errors import ConfigError

BASE = "base"
ALTERNATIVES = ({"steps", "epochs"}, {"model.path", "model.config"}, {"tune.freeze", "tune.train"})
"""Keys of which one is given: a file or an override that gives one takes the other from what it inherits."""


def read_run(
    path: str | PathLike, overrides: Iterable[str] = (), known: Iterable[str] = ()
) -> tuple[dict[str, Any], Origin]:
    """The values of a run file over those of its `base`, under the overrides, and where they come from.

    A file of MindFormers' is translated; the overrides are keys of ours all the same.

    Args:
        path: a YAML file.
        overrides: `key.sub=value`, where a number in a key is a place of a list and the value is YAML.
        known: the paths of all keys, for suggestions.

    Raises:
        ConfigError: a file cannot be read, or inherits itself, an override is none, or a MindFormers run is refused.
    """
    values = _inherited(Path(path), ())
    changes = [read_override(each) for each in overrides]
    known = list(known)
    for key, _ in changes:
        _refuse_unknown(key, known)
    given = [key for key, _ in changes]
    theirs = is_mindformers(values)
    idle: Mapping[str, str] = {}
    if theirs:
        translation = translate(values)
        translation.check(given)
        values, idle = translation.values, translation.without_effect
    stated = frozenset({*paths_of(values), *given})
    for key, value in changes:
        values = over(values, _nested(key.split("."), value, values))
    return values, Origin(stated, theirs, idle)


def read_override(text: str) -> tuple[str, Any]:
    """The key and the value of `key.sub=value`."""
    key, mark, value = text.partition("=")
    require(
        bool(mark) and bool(key.strip()), f"an override is key.sub=value, such as optimizer.lr=1e-4; got {text!r:.80}"
    )
    return key.strip(), parse_yaml(value, f"the override {text!r:.80}")


def over(below: Mapping[str, Any], above: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """`above` over `below`: mappings are merged key by key, all else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        path = f"{within}{key}"
        for pair in ALTERNATIVES:
            if path in pair and value is not None:
                for other in (each.rpartition(".")[2] for each in pair - {path}):
                    if other not in above:
                        merged.pop(other, None)
        inherited = merged.get(key)
        if isinstance(inherited, Mapping) and isinstance(value, Mapping):
            merged[key] = over(inherited, value, f"{path}.")
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _inherited(path: Path, heirs: tuple[Path, ...]) -> dict[str, Any]:
    here = path.resolve()
    if here in heirs:
        chain = " -> ".join(str(each) for each in (*heirs, here))
        raise ConfigError(f"{BASE} leads back to the file it began with: {chain}")
    values = read_yaml(path)
    base = values.pop(BASE, None)
    if base is None:
        return values
    require(isinstance(base, str), f"{BASE} must name a file, got {base!r:.80}")
    return over(_inherited(path.parent / base, (*heirs, here)), values)


def _nested(keys: list[str], value: Any, values: Any) -> dict[str, Any]:
    """The mapping that holds `value` at the path `keys`; a list of `values` on the way is changed at one place."""
    first, *rest = keys
    inside = values.get(first) if isinstance(values, Mapping) else None
    if not rest:
        return {first: value}
    if isinstance(inside, list) and rest[0].isdigit():
        return {first: _changed_list(first, inside, rest, value)}
    return {first: _nested(rest, value, inside)}


def _changed_list(name: str, listed: list[Any], keys: list[str], value: Any) -> list[Any]:
    place, *rest = int(keys[0]), *keys[1:]
    require(place < len(listed), f"{name}.{place} must be one of the {len(listed)} entries, the first of which is 0")
    changed, entry = list(listed), listed[place]
    if not rest:
        changed[place] = value
    else:
        nested = _nested(rest, value, entry)
        entry = {SourcePart.SHORT: entry} if isinstance(entry, str) else entry
        changed[place] = over(entry, nested) if isinstance(entry, Mapping) else nested
    return changed


def _refuse_unknown(key: str, known: list[str]) -> None:
    """Raise a ConfigError where the first name of `key` is no section; what is inside is checked with the section."""
    first = key.partition(".")[0]
    if not known or first in known:
        return
    elsewhere = [path for path in known if path.rpartition(".")[2] == first]
    close = elsewhere[0] if len(elsewhere) == 1 else meant(key, known) or meant(first, known)
    tops = [path for path in known if "." not in path]
    raise ConfigError(
        f'unknown key "{key}"; ' + (f'did you mean "{close}"?' if close else f"it takes {', '.join(tops)}")
    )
