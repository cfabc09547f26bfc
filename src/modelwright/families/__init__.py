"""The families that there are, each a folder with a record, and the questions that the rest asks: whose is this?"""

from collections.abc import Mapping
from typing import Any

from modelwright.errors import ConfigError
from modelwright.families.record import Dialect, Family, Reference, resolve

BUILT_IN = (
    "modelwright.families.deepseek_v2:FAMILY",
    "modelwright.families.deepseek_vl2:FAMILY",
    "modelwright.families.imagegpt:FAMILY",
    "modelwright.families.llama:FAMILY",
)
"""The record of each family of modelwright: a new family adds its line here."""

__all__ = [
    "Dialect",
    "Family",
    "Reference",
    "architecture_of",
    "causal_family",
    "families",
    "family_of",
    "find_family",
    "forget_family",
    "model_class",
    "register_family",
    "resolve",
]

_registered: dict[str, Family] = {}


def families() -> tuple[Family, ...]:
    """Every family: those of modelwright, then those that were registered."""
    return (*(resolve(reference) for reference in BUILT_IN), *_registered.values())


def register_family(family: Family) -> None:
    """Let every lookup find `family`; one registered before under its name is replaced.

    Raises:
        ConfigError: its name is that of a family of modelwright, another family has one of its architectures, or its
            `causal` is none of them.
    """
    if family.causal not in family.architectures:
        listed = ", ".join(family.architectures)
        raise ConfigError(f'causal ("{family.causal}") must be one of the architectures ({listed})')
    for other in families():
        if other is _registered.get(family.name):
            continue
        if other.name == family.name:
            raise ConfigError(f'the name "{family.name}" belongs to one of modelwright\'s own families')
        if taken := family.architectures.keys() & other.architectures.keys():
            raise ConfigError(f'architecture "{min(taken)}" belongs to the family "{other.name}" already')
    _registered[family.name] = family


def forget_family(name: str) -> None:
    """Undo `register_family`; nothing where no family was registered under that name."""
    _registered.pop(name, None)


def family_of(subject: Any) -> Family:
    """The family of a config, of a model, or of the contents of a ``config.json``.

    The contents are looked up by ``architectures`` first and by ``model_type`` where none of those is known.

    Raises:
        ConfigError: it belongs to no family.
    """
    family = find_family(subject)
    if family is None:
        config = getattr(subject, "config", subject)
        kind = config.get("model_type") if isinstance(config, Mapping) else getattr(config, "model_type", None)
        raise ConfigError(f"{type(subject).__name__} has model_type {kind!r}; it must be one of {_type_names()}")
    return family


def find_family(subject: Any) -> Family | None:
    """As `family_of`; None where it belongs to no family."""
    if isinstance(subject, Mapping):
        named = _architectures(subject)
        by_name = (family for name in named for family in families() if name in family.architectures)
        return next(by_name, None) or _by_type(subject.get("model_type"))
    config = getattr(subject, "config", subject)
    kind = getattr(config, "model_type", None)
    return next((f for f in families() if kind in f.model_types and isinstance(config, f.config_class)), None)


def causal_family(kind: type) -> Family | None:
    """The family whose causal model, or the network of it, is of class `kind` or above it; None for any other class."""
    model_type = getattr(getattr(kind, "config_class", None), "model_type", None)
    for family in families():
        if model_type in family.model_types and issubclass(kind, family.network_class):
            return family
    return None


def architecture_of(values: Mapping[str, Any]) -> tuple[Family, str]:
    """The family and the architecture that the contents of a ``config.json`` name; no model is imported.

    Raises:
        ConfigError: neither ``architectures`` nor, without those, ``model_type`` names one of ours.
    """
    named, kind = _architectures(values), values.get("model_type")
    for name in named:
        for family in families():
            if name in family.architectures:
                return family, name
    family = None if named else _by_type(kind)
    if family is not None:
        return family, family.causal
    said = f"architectures {named} (model_type {kind!r})" if named else f"model_type {kind!r}"
    ours = ", ".join(name for family in families() for name in family.architectures) if named else _type_names()
    raise ConfigError(f"{said} is not served; we have {ours}")


def model_class(values: Mapping[str, Any]) -> Any:
    """The class of model for the contents of a ``config.json``: by ``architectures``, then by ``model_type``.

    Raises:
        ConfigError: neither is one of ours; the message lists what is.
    """
    family, architecture = architecture_of(values)
    return family.model_class(architecture)


def _architectures(values: Mapping[str, Any]) -> list[str]:
    named = values.get("architectures") or []
    if isinstance(named, str) or not all(isinstance(name, str) for name in named):
        raise ConfigError(f"architectures must be a list of names, not {named!r}")
    return list(named)


def _by_type(kind: Any) -> Family | None:
    return next((family for family in families() if kind in family.model_types), None)


def _type_names() -> str:
    return ", ".join(kind for family in families() for kind in family.model_types)
