"""What a run trains: the model, and which of its parts move, by which rates, with or without LoRA."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from modelwright.configs.base import require, require_one_of
from modelwright.configs.field_types import DTYPES, is_number
from modelwright.configs.run.part import RunPart


@dataclass(frozen=True)
class ModelPart(RunPart):
    """Which model is trained, exactly one of `path` and `config` of it.

    Attributes:
        path: a folder or a file of weights, a name of the zoo, or a hub id; relative to the run file.
        config: what a `config.json` says, for a model that begins with drawn weights.
        dtype: the type of the weights that are stepped.
        init: the seed of drawn weights; None: the run's `seed`.
        adapter: a folder of an adapter to continue with.
        processor: the folder of the tokenizer or processor; None: `path`.
    """

    path: str | None = None
    config: Mapping[str, Any] | None = field(default=None, hash=False)
    dtype: str = "float32"
    init: int | None = None
    adapter: str | None = None
    processor: str | None = None

    def check_rules(self) -> None:
        given = [name for name in ("path", "config") if getattr(self, name) is not None]
        require(
            len(given) == 1,
            "a model is either read from a path or built from a config: exactly one of path and config must be given, "
            f"got {' and '.join(given) or 'neither'}",
        )
        require_one_of("dtype", self.dtype, DTYPES)
        self.require_at_least(0, "init")


@dataclass(frozen=True)
class LoraPart(RunPart):
    """Low-rank adapters beside frozen weights.

    Attributes:
        rank, alpha: the update is `alpha / rank` times B A, with `rank` rows in A; `alpha / sqrt(rank)` with `rslora`.
        dropout: of what enters A, in training; also beside experts, for which peft has none.
        targets, exclude: parts of the family, or regular expressions of the names of weights.
        init: `default` draws A and begins with B = 0.
        format: how an adapter is saved: `stacked` (peft's `target_parameters`), `official` (each expert by its own
            names) or `merged` into the weights.
    """

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("attention", "experts", "shared", "dense")
    exclude: tuple[str, ...] = ("gate", "head")
    rslora: bool = False
    init: Literal["default"] = "default"
    format: Literal["stacked", "official", "merged"] = "stacked"

    def check_rules(self) -> None:
        self.require_at_least(1, "rank")
        require(self.alpha > 0, f"alpha must be above 0, got {self.alpha}")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")
        require(bool(self.targets), "targets must name at least one part or expression, got none")


@dataclass(frozen=True)
class TunePart(RunPart):
    """Which parameters move. A part is one of the family's (`vision`, `experts`, ...) or an expression of names.

    Attributes:
        freeze: what keeps its weights; all else trains. With `lora` it gets no adapters.
        train: the inverse: only this trains, and beside `lora` it trains whole.
        lora: adapters instead of whole weights.
        rates: the learning rate of a part.
    """

    freeze: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    lora: LoraPart | None = None
    rates: Mapping[str, float] = field(default_factory=dict, hash=False)

    def check_rules(self) -> None:
        require(
            self.lora is not None or not (self.freeze and self.train),
            f"exactly one of freeze and train may be given, got freeze {list(self.freeze)} and train "
            f"{list(self.train)}",
        )
        for part, rate in self.rates.items():
            require(
                isinstance(part, str) and is_number(rate) and rate > 0, f"rates of {part} must be above 0, got {rate}"
            )
            require(
                part not in self.freeze, f"{part} has a rate ({rate}) and stands in freeze: it must be in one of them"
            )
