"""The parts of a model, as its family's record names them, and how a run's config picks among their parameters."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelwright.errors import ConfigError
from modelwright.families import family_of


def parts_of(model: Any) -> dict[str, tuple[str, ...]]:
    """The parts that ``model`` has, in its family's order, each with the names of its parameters.

    A tied head is the embedding's parameter, and stands there alone.

    Raises:
        ConfigError: a parameter belongs to no part.
    """
    return split_by_part(model, (name for name, _ in model.named_parameters()))


def split_by_part(model: Any, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """``names`` of tensors or modules' tensors of ``model`` by the part that each belongs to."""
    patterns = family_of(model).parts
    found: dict[str, list[str]] = {part: [] for part in patterns}
    for name in names:
        fitting = [part for part, pattern in patterns.items() if re.search(pattern, name)]
        if len(fitting) != 1:
            said = " and ".join(fitting) or "none"
            raise ConfigError(f"{name} of {type(model).__name__} must belong to one part of its family, got {said}")
        found[fitting[0]].append(name)
    return {part: tuple(names) for part, names in found.items() if names}


def chosen(field: str, asked: Sequence[str], parts: Mapping[str, Sequence[str]]) -> set[str]:
    """The names that ``asked`` means: those of a part, or those in which a regular expression is found.

    Args:
        field: of the run's config, for the error.

    Raises:
        ConfigError: one of ``asked`` is no part of this model and found in no name, or is no expression.
    """
    names = [name for of_part in parts.values() for name in of_part]
    found: set[str] = set()
    for each in asked:
        meant = set(parts[each]) if each in parts else {name for name in names if _fits(field, each, name)}
        if not meant:
            raise ConfigError(
                f"{field} names {each!r}, which is no part of this model and found in no name of its parameters; "
                f"its parts are {', '.join(parts)}{suggestion(each, parts)}"
            )
        found |= meant
    return found


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` where a known word resembles ``word``, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _fits(field: str, pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise ConfigError(f"{field} names {pattern!r}, which is no part and no regular expression: {error}") from error
