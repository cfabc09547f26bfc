"""What of a model trains, and at which rate: `settle` freezes the rest and says how much is left of each part."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from modelwright.errors import ConfigError
from modelwright.families import family_of
from modelwright.training.tuning.parts import chosen, parts_of, suggestion


@dataclass(frozen=True)
class Group:
    """The parameters of one part that train.

    Attributes:
        part: its name.
        parameters: by their names in the model.
        rate: their learning rate; None where it is the run's.
    """

    part: str
    parameters: Mapping[str, nn.Parameter]
    rate: float | None = None


@dataclass(frozen=True)
class PartRow:
    """One line of the summary: how many numbers of a part train, of how many."""

    part: str
    trainable: int
    total: int
    rate: float | None = None


@dataclass(frozen=True)
class Tuned:
    """What `settle` decided.

    Attributes:
        groups: the parts that train.
        table: all parts of the model.
    """

    groups: tuple[Group, ...]
    table: tuple[PartRow, ...] = field(default=())

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All that trains, by name."""
        return {name: parameter for group in self.groups for name, parameter in group.parameters.items()}

    def trains(self, part: str) -> bool:
        """Whether anything of ``part`` trains; the bias that steers a router moves where ``gate`` does."""
        return any(group.part == part for group in self.groups)


def settle(model: Any, tune: Any = None) -> Tuned:
    """Freeze what ``tune`` does not train, in place.

    Args:
        tune: a :class:`modelwright.configs.run.TunePart`; None trains everything.

    Raises:
        ConfigError: it names what this model has not, nothing would train, or a frozen part has a rate.
    """
    parts = parts_of(model)
    rates = {} if tune is None else dict(tune.rates)
    for part in rates:
        if part not in parts:
            raise ConfigError(
                f"tune.rates names {part!r}, which is no part of this model; its parts are "
                f"{', '.join(parts)}{suggestion(part, parts)}"
            )
    trained = _trained(model, tune, parts)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    if not trained:
        raise ConfigError(f"nothing would train: tune leaves no parameter of {', '.join(parts)}")
    groups = []
    for part, names in parts.items():
        left = {name: parameters[name] for name in names if name in trained}
        if left:
            groups.append(Group(part, left, rates.get(part)))
        elif part in rates:
            raise ConfigError(f"tune.rates gives {part} a rate ({rates[part]}), and nothing of that part trains")
    table = tuple(_row(part, [parameters[name] for name in names], rates.get(part)) for part, names in parts.items())
    return Tuned(tuple(groups), table)


def _trained(model: Any, tune: Any, parts: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The names of what trains."""
    names = {name for of_part in parts.values() for name in of_part}
    if tune is None:
        return names
    if not tune.freeze and not tune.train:
        return names - {name for part in family_of(model).frozen for name in parts.get(part, ())}
    trained = chosen("tune.train", tune.train, parts) if tune.train else names
    return trained - chosen("tune.freeze", tune.freeze, parts)


def _row(part: str, parameters: list[nn.Parameter], rate: float | None) -> PartRow:
    trainable = sum(each.numel() for each in parameters if each.requires_grad)
    return PartRow(part, trainable, sum(each.numel() for each in parameters), rate)
