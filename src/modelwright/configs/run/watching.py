"""What a run leaves behind and how it ends: checkpoints, logs, evaluation, limits."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from modelwright.configs.base import require
from modelwright.configs.field_types import cut
from modelwright.configs.run.part import RunPart
from modelwright.errors import ConfigError

_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


def seconds(value: Any, name: str) -> Any:
    """Seconds of a text such as `600s`, `10m` or `2h`; a number is seconds already."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", value.strip())
    if found is None:
        raise ConfigError(f'{name} must be a time such as 600, "600s", "10m" or "2h", got {cut(value)}')
    return float(found[1]) * _UNITS[found[2] or ""]


@dataclass(frozen=True)
class CheckpointPart(RunPart):
    """When the state of a run is saved, and which are kept.

    Attributes:
        every: steps between two; None: only at the end.
        keep: how many of the last are kept.
        keep_every: every so many steps one is kept for ever.
        async_: written by a thread while the run goes on.
        verify: hashes are compared when one is read.
        minutes: the run saves whenever so many more minutes of it have passed.
        seconds: time between two, beside `every`.
        resume: `auto` continues from the newest that verifies in the output, `none` begins anew, and a path names one.
        on_end: whether the official folder is written when the run is done.
    """

    every: int | None = 200
    keep: int = 3
    keep_every: int | None = None
    async_: bool = True
    verify: bool = True
    minutes: float | None = None
    on_end: Literal["export", "none"] = "export"
    seconds: float | None = None
    resume: str = "auto"

    def check_rules(self) -> None:
        self.require_at_least(1, "every", "keep", "keep_every")
        require(self.minutes is None or self.minutes > 0, f"minutes must be above 0, got {self.minutes}")
        require(self.seconds is None or self.seconds > 0, f"seconds must be above 0, got {self.seconds}")


@dataclass(frozen=True)
class ProfilePart(RunPart):
    """The steps that torch's profiler watches, first and last, and whether memory is noted."""

    first: int = 2
    last: int = 4
    memory: bool = False

    def check_rules(self) -> None:
        self.require_at_least(1, "first")
        require(self.last >= self.first, f"last ({self.last}) must be at least first ({self.first})")


@dataclass(frozen=True)
class LogPart(RunPart):
    """What a run says: a line every `every` steps, metrics.jsonl, and writers.

    `wandb` and `trackio` are the names of a project.
    """

    every: int = 10
    jsonl: bool = True
    tensorboard: bool = False
    wandb: str | None = None
    trackio: str | None = None
    profile: ProfilePart | None = None

    def check_rules(self) -> None:
        self.require_at_least(1, "every")


@dataclass(frozen=True)
class EvaluatePart(RunPart):
    """How held-out rows are measured.

    Attributes:
        every: steps between two measurements; None: at the end.
        generate: how many sample answers are written each time.
        epochs: epochs between two, beside `every`.
        only: nothing is trained: the rows are measured once.
    """

    every: int | None = None
    generate: int = 0
    epochs: int | None = None
    only: bool = False

    def check_rules(self) -> None:
        self.require_at_least(1, "every", "epochs")
        self.require_at_least(0, "generate")


@dataclass(frozen=True)
class SkipPart(RunPart):
    """Steps whose loss or norm is not finite are left out, up to `skip` in a row."""

    skip: int

    def check_rules(self) -> None:
        self.require_at_least(1, "skip")


@dataclass(frozen=True)
class LimitsPart(RunPart):
    """What ends a run early.

    Attributes:
        nonfinite: whether a loss that is no number stops the run or is skipped.
        spike: a step is skipped whose norm is above so many times the running median.
        spike_of: `norm` compares the norm itself with `spike`.
        stop: the step after which the run ends, though its schedule is longer.
        patience: seconds without a step, after which the run ends; also a text such as `10m`.
        restarts: how often a run of several ranks begins again by itself; of one process it must be 0.
    """

    nonfinite: Literal["stop"] | SkipPart = "stop"
    spike: float | None = None
    spike_of: Literal["median", "norm"] = "median"
    stop: int | None = None
    patience: float = 600.0
    restarts: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "patience", seconds(self.patience, "patience"))
        super().__post_init__()

    @property
    def skips(self) -> int:
        """How many steps in a row may be left out because they are not finite; 0: the first one stops the run."""
        return self.nonfinite.skip if isinstance(self.nonfinite, SkipPart) else 0

    def check_rules(self) -> None:
        require(self.patience > 0, f"patience must be above 0 seconds, got {self.patience}")
        least = 1 if self.spike_of == "median" else 0
        require(self.spike is None or self.spike > least, f"spike must be above {least}, got {self.spike}")
        self.require_at_least(1, "stop")
        self.require_at_least(0, "restarts")
