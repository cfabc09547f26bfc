"""What of a model trains, whole or by LoRA, and at which rate: `settle` freezes the rest and counts what is left."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from modelwright.checkpoints.lora import weights_of
from modelwright.configs.run import LoraPart, TunePart
from modelwright.errors import ConfigError
from modelwright.families import family_of
from modelwright.layers.lora import LowRank
from modelwright.training.tuning.adapter import load_adapter, trained_whole
from modelwright.training.tuning.lora import add_lora, has_integers, kept, scale_of, targets
from modelwright.training.tuning.parts import chosen, parts_of, split_by_part, suggestion


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
    table: tuple[PartRow, ...]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All that trains, by name."""
        return {name: parameter for group in self.groups for name, parameter in group.parameters.items()}

    def trains(self, part: str) -> bool:
        """Whether anything of ``part`` trains; the bias that steers a router moves where ``gate`` does."""
        return any(group.part == part for group in self.groups)

    def notes(self, sees_pictures: bool) -> tuple[str, ...]:
        """What a reader should know of this choice, after the first step's rows: whether any had a picture."""
        blind = [part for part in ("vision", "projector", "marks") if self.trains(part) and not sees_pictures]
        if not blind:
            return ()
        listed = " and ".join(blind)
        return (f"{listed} would train, and no row of the first step has a picture: of text alone they learn nothing",)


def settle(model: Any, tune: TunePart | None = None, *, adapter: str | Path | None = None, seed: int = 0) -> Tuned:
    """Freeze what ``tune`` does not train and put LoRA where it asks for it, in place.

    Beside LoRA nothing trains but what ``tune.train`` names; what ``tune.freeze`` names gets no LoRA, or keeps an
    adapter's as it is. A model whose
    family sees pictures keeps its tower frozen where ``tune`` names neither.

    Args:
        tune: what the run's config says; None trains everything, or the adapter alone.
        adapter: a folder of LoRA to continue with.
        seed: of LoRA's first numbers.

    Raises:
        ConfigError: it names what this model has not, nothing would train, a frozen part has a rate, weights in
            integers would train, or the adapter is of another rank or scale than ``tune.lora``.
        CheckpointError: the adapter cannot be read, or is of another model.
    """
    parts, rates = parts_of(model), {} if tune is None else dict(tune.rates)
    for part in rates:
        if part not in parts:
            raise ConfigError(
                f"tune.rates names {part!r}, which is no part of this model; its parts are "
                f"{', '.join(parts)}{suggestion(part, parts)}"
            )
    lora = None if tune is None else tune.lora
    if lora is not None and lora.format == "merged" and has_integers(model):
        raise ConfigError(
            "tune.lora.format is merged, and the model's weights are stored in integers, into which no adapter can be "
            "folded: use stacked or official"
        )
    if lora is None and adapter is None:
        if has_integers(model) and (tune is None or not tune.train):
            raise ConfigError("weights stored in integers train under LoRA alone, and tune.lora is not given")
        trained = _trained(model, tune, parts)
    else:
        whole = chosen("tune.train", tune.train, parts) if tune is not None and tune.train else set()
        frozen = kept(model, () if tune is None else tune.freeze)
        pairs = _with_lora(model, lora, () if tune is None else tune.freeze, adapter, seed, whole)
        whole |= trained_whole(model)
        trained = whole - frozen | {f"{_beside(name)}.{side}" for name in pairs.keys() - frozen for side in ("A", "B")}
        parts = parts_of(model)
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
    return Tuned(tuple(groups), _table(model, parts, rates))


def _trained(model: Any, tune: TunePart | None, parts: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The names of what trains."""
    names = {name for of_part in parts.values() for name in of_part}
    if tune is None:
        return names
    if not tune.freeze and not tune.train:
        return names - {name for part in family_of(model).frozen for name in parts.get(part, ())}
    trained = chosen("tune.train", tune.train, parts) if tune.train else names
    return trained - chosen("tune.freeze", tune.freeze, parts)


def _with_lora(
    model: Any, lora: LoraPart | None, freeze: tuple[str, ...], adapter: str | Path | None, seed: int, whole: set[str]
) -> dict[str, LowRank]:
    """The pairs that the model then has: those of the adapter, or new ones."""
    if adapter is None:
        assert lora is not None  # one of the two is given
        pairs = add_lora(model, lora, seed, freeze)
    else:
        said = lora is not None and lora.targets != LoraPart.targets
        meant = set(targets(model, lora)) if lora is not None and said else None
        pairs = load_adapter(model, adapter, 0.0 if lora is None else lora.dropout)
        if lora is not None:
            _check_agrees(pairs, lora, adapter)
            if meant is not None and meant != pairs.keys():
                odd = min(meant ^ pairs.keys())
                raise ConfigError(
                    f"tune.lora.targets {'name' if odd in meant else 'leave out'} {odd}, for which {adapter} has "
                    f"{'no' if odd in meant else 'a'} pair: leave them out, or name what the adapter has"
                )
    if both := sorted(whole & pairs.keys()):
        raise ConfigError(f"tune.train names {both[0]}, which has LoRA: a weight trains whole or by LoRA, not both")
    return pairs


def _check_agrees(pairs: Mapping[str, LowRank], lora: LoraPart, adapter: str | Path) -> None:
    """Raise a :class:`ConfigError` unless an adapter's pairs are of the rank and scale that a run asks for."""
    scale = scale_of(lora)
    for name, pair in pairs.items():
        if pair.rank != lora.rank or not math.isclose(pair.scale, scale, rel_tol=1e-6):
            raise ConfigError(
                f"tune.lora asks for rank {lora.rank} and scale {scale:g}, and {name} in {adapter} has rank "
                f"{pair.rank} and scale {pair.scale:g}: leave tune.lora out, or ask for what the adapter has"
            )


def _beside(weight: str) -> str:
    """Where the pair of a weight lies."""
    module, _, own = weight.rpartition(".")
    return f"{module}.lora.{own}"


def _table(model: Any, parts: Mapping[str, tuple[str, ...]], rates: Mapping[str, float]) -> tuple[PartRow, ...]:
    parameters = dict(model.named_parameters())
    stored = {name: math.prod(shape) for name, shape in weights_of(model).items() if name not in parameters}
    integers = split_by_part(
        model, (name for name in stored if has_integers(model.get_submodule(name.rpartition(".")[0])))
    )
    rows = []
    for part in dict.fromkeys([*parts, *integers]):
        own = [parameters[name] for name in parts.get(part, ())]
        trainable = sum(each.numel() for each in own if each.requires_grad)
        total = sum(each.numel() for each in own) + sum(stored[name] for name in integers.get(part, ()))
        rows.append(PartRow(part, trainable, total, rates.get(part)))
    return tuple(rows)
