"""Where the values of a run come from: which keys its files and overrides state, and what of them changes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Origin:
    """What a run keeps of its files beside its values.

    Attributes:
        stated: the paths of the keys that a file or an override gives.
        mindformers: whether the file is one of MindFormers'.
        without_effect: what of the file changes nothing, by its path there, each with the reason.
    """

    stated: frozenset[str] = frozenset()
    mindformers: bool = False
    without_effect: Mapping[str, str] = field(default_factory=dict, hash=False)
