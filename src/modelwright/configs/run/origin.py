"""Where the values of a run come from: which keys its files and overrides state, and what of them changes nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Origin:
    """What a run keeps of its files beside its values.

    Attributes:
        stated: the paths of the keys that a file, an override or a mapping gives; None for a run that was built part by
            part, which states them all.
        mindformers: whether the file is one of MindFormers'.
        without_effect: what of the file changes nothing, by its path there, each with the reason.
    """

    stated: frozenset[str] | None = None
    mindformers: bool = False
    without_effect: Mapping[str, str] = field(default_factory=dict, hash=False)


def paths_of(values: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """The path of every value that is no section."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from paths_of(value, f"{within}{key}.")
        else:
            yield f"{within}{key}"
