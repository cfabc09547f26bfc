"""How a run learns: the loss, the optimizer, its schedule, and the types of numbers."""

from dataclasses import dataclass
from typing import Literal

from modelwright.configs.base import require, require_one_of
from modelwright.configs.field_types import DTYPES
from modelwright.configs.run.part import RunPart

_DECAY = ("weight_decay", "decay")
_ADAM = ("betas", "eps", *_DECAY, "fused", "state")
OPTIMIZERS = {
    "adamw": _ADAM,
    "adam": _ADAM,
    "sgd": ("momentum", *_DECAY, "fused"),
    "adagrad": ("eps", *_DECAY, "fused"),
    "adafactor": _DECAY,
    "lion": ("betas", *_DECAY),
    "muon": ("momentum", "betas", "eps", *_DECAY, "fused"),
}
"""The rules, each with the fields that it reads beside those of all; Muon's `betas` and `eps` are AdamW's beside it."""
_WARMS = ("warmup", "warmup_init")
_FALLS = ("end", "decay", "decay_start")
SCHEDULES = {
    "cosine": (*_WARMS, "end", "cycles"),
    "linear": (*_WARMS, "end"),
    "constant": _WARMS,
    "wsd": (*_WARMS, *_FALLS),
    "polynomial": (*_WARMS, "end", "power"),
    "restarts": (*_WARMS, "end", "cycles"),
}
"""Our schedules, which count from step 1, each with the fields that it reads beside those of all."""
MINDFORMERS_SCHEDULES = {
    "ConstantWarmUpLR": _WARMS,
    "LinearWithWarmUpLR": _WARMS,
    "CosineWithWarmUpLR": (*_WARMS, *_FALLS, "cycles"),
    "CosineWithRestartsAndWarmUpLR": (*_WARMS, *_FALLS, "cycles"),
    "PolynomialWithWarmUpLR": (*_WARMS, *_FALLS, "power"),
    "ConstantWithCoolDownLR": (*_WARMS, *_FALLS, "keep", "end_after", "cycles"),
    "WarmUpStableDecayLR": (*_WARMS, *_FALLS),
    "CosineAnnealingLR": _FALLS,
    "CosineAnnealingWarmRestarts": (*_FALLS, "cycles"),
}
"""MindFormers', which count from step 0."""


@dataclass(frozen=True)
class LossPart(RunPart):
    """How a loss is made of many tokens.

    Attributes:
        per_token: every counted label of a step weighs alike; without it every micro-batch does.
        chunk: rows of the head at once; `auto` chooses, None builds all logits.
        balance_scope: over what the loads of experts are balanced.
    """

    per_token: bool = True
    chunk: int | Literal["auto"] | None = "auto"
    balance_scope: Literal["global", "micro_batch"] = "global"

    def check_rules(self) -> None:
        if isinstance(self.chunk, int):
            self.require_at_least(1, "chunk")


@dataclass(frozen=True)
class OptimizerPart(RunPart):
    """The rule that steps weights by gradients.

    Attributes:
        decay: what `weight_decay` shrinks: matrices (no biases, nothing of one dimension and no router), those of
            routers, too, as MindFormers does, all, or nothing.
        fused: whether one kernel steps many tensors; `auto` where it serves.
        state: the type of its moments.
        master: the type of the weights that are stepped.
        momentum: of sgd and muon.
    """

    name: str = "adamw"
    lr: float = 2e-5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: Literal["matrices", "matrices_and_routers", "all", "none"] = "matrices"
    fused: bool | Literal["auto"] = "auto"
    state: Literal["float32", "int8"] = "float32"
    master: Literal["float32"] = "float32"
    momentum: float = 0.0

    def check_rules(self) -> None:
        require_one_of("name", self.name, OPTIMIZERS)
        require(self.lr > 0, f"lr must be above 0, got {self.lr}")
        for beta in self.betas:
            require(0 <= beta < 1, f"betas must be in [0, 1), got {list(self.betas)}")
        require(self.eps > 0, f"eps must be above 0, got {self.eps}")
        require(self.weight_decay >= 0, f"weight_decay must be at least 0, got {self.weight_decay}")
        require(0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}")
        require(
            self.state == "float32" or self.name in ("adam", "adamw"),
            f'state "{self.state}" needs the optimizer adam or adamw, got "{self.name}"',
        )

    def without_effect(self) -> dict[str, str]:
        """The fields that are not as usual and that this rule does not read, each with the reason."""
        unread = self.said() - {"name", "lr", "master", *OPTIMIZERS[self.name]}
        return {name: f"{self.name} has no use for it" for name in sorted(unread)}


@dataclass(frozen=True)
class SchedulePart(RunPart):
    """How the learning rate moves.

    `warmup` and `decay` below 1 are shares of the run, from 1 on they are steps. For our names `end` is the share of
    the rate that is left at the end; for MindFormers' names it is the rate itself, as `warmup_init` is.

    Attributes:
        name: one of `SCHEDULES`, or of `MINDFORMERS_SCHEDULES`.
        warmup: how long it rises.
        end: what it ends at.
        decay: how long it falls at the end, of wsd; of MindFormers' schedules their `decay_steps` or `decay_ratio`, of
            CosineAnnealingLR its `t_max` and of CosineAnnealingWarmRestarts its `t_0`. None: their own default.
        decay_start: when it begins to fall, of WarmUpStableDecayLR.
        keep: how long it stays after warming up, of ConstantWithCoolDownLR.
        end_after: the rate after it has fallen to `end`, of ConstantWithCoolDownLR, its `lr_end2`; None: `end`.
        power: of polynomial.
        cycles: of restarts; `num_cycles` of MindFormers' cosines, and `t_mult` of CosineAnnealingWarmRestarts.
        warmup_init: the rate that warming up begins with.
        total: steps that it is stretched over; None: those of the run.
        counts_from: the number of the first step.
    """

    name: str = "cosine"
    warmup: float = 0.0
    end: float = 0.0
    decay: float | None = None
    decay_start: float | None = None
    keep: float | None = None
    end_after: float | None = None
    power: float = 1.0
    cycles: float | None = None
    warmup_init: float = 0.0
    total: int | None = None
    counts_from: int | None = None

    def __post_init__(self) -> None:
        if self.counts_from is None:
            object.__setattr__(self, "counts_from", 0 if self.name in MINDFORMERS_SCHEDULES else 1)
        super().__post_init__()

    def check_rules(self) -> None:
        require_one_of("name", self.name, (*SCHEDULES, *MINDFORMERS_SCHEDULES))
        self.require_at_least(0, "warmup", "end", "decay", "decay_start", "keep", "end_after", "warmup_init")
        self.require_at_least(1, "total")
        for name in ("warmup", "decay", "decay_start", "keep"):
            value = getattr(self, name)
            require(
                value is None or value < 1 or value == int(value),
                f"{name} is a share of the run below 1, or a whole number of steps; got {value}",
            )
        require(self.power > 0, f"power must be above 0, got {self.power}")
        require(self.cycles is None or self.cycles > 0, f"cycles must be above 0, got {self.cycles}")
        require(
            self.name in MINDFORMERS_SCHEDULES or self.end <= 1,
            f"end must be at most 1, the share of the learning rate that is left, got {self.end}",
        )
        require(self.counts_from in (0, 1), f"counts_from must be 0 or 1, got {self.counts_from}")

    def without_effect(self) -> dict[str, str]:
        """The fields that are not as usual and that this schedule does not read, each with the reason."""
        read = (SCHEDULES | MINDFORMERS_SCHEDULES)[self.name]
        unread = self.said() - {"name", "total", "counts_from", *read}
        return {name: f"{self.name} has no use for it" for name in sorted(unread)}

    def warmup_steps(self, total: int) -> int:
        """How many of `total` steps the rate rises in."""
        return steps_of(self.warmup, total)

    def decay_steps(self, total: int) -> int | None:
        """How many of `total` steps the rate falls in; None where that is left to the schedule."""
        return None if self.decay is None else steps_of(self.decay, total)


def steps_of(length: float, total: int) -> int:
    """Steps of a length that is a share of `total` below 1, and steps from 1 on; shares are rounded down."""
    return int(length * total) if length < 1 else int(length)


@dataclass(frozen=True)
class LossScalePart(RunPart):
    """The factor that keeps float16's small gradients: `init`, multiplied or divided by `factor` every `window` steps.

    A `fixed` one never moves.
    """

    init: float = 65536.0
    factor: float = 2.0
    window: int = 1000
    fixed: bool = False

    def check_rules(self) -> None:
        require(self.init > 0, f"init must be above 0, got {self.init}")
        require(self.fixed or self.factor > 1, f"factor must be above 1, got {self.factor}")
        self.require_at_least(1, "window")


@dataclass(frozen=True)
class PrecisionPart(RunPart):
    """The type of products (`compute`; None: the model's), of sums over ranks (`reduce`), and float16's loss scale.

    With `autocast` weights are cast wherever they are used, in place of copies that are made once a step.
    """

    compute: str | None = None
    autocast: bool = False
    reduce: str = "float32"
    scale: LossScalePart | None = None

    def check_rules(self) -> None:
        if self.compute is not None:
            require_one_of("compute", self.compute, DTYPES)
        require_one_of("reduce", self.reduce, DTYPES)
