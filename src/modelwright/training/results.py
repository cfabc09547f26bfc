"""What a step and a run leave behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

DONE, STOPPED, FAILED = 0, 3, 4
"""Exit codes: all steps were taken; a signal or the clock stopped the run, with a checkpoint; training failed."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step.

    Attributes:
        step: its number; the first is 1.
        loss: ``lm + balance``, before the step.
        lm: the cross-entropy of the labels that count, their mean.
        balance: the weighted balance losses of experts; None where there are none.
        counted: labels that count in the step.
        tokens: its real tokens.
        norm: of the whole gradient, in fp32 and before clipping.
        norms: of each part's gradient.
        rates: the learning rate of each part.
        loads: how many choices fell on each expert, ``[layers, experts]``; None where there are none.
        dropped: how many of a layer's choices found no room, ``[layers]``; None where experts have no capacity.
        skipped: why the optimizer was not stepped; None where it was.
        seconds: wall clock of the step, without the wait for its batch.
        data_seconds: that wait.
        scale: what the loss was multiplied by, in fp16.
    """

    step: int
    loss: float
    lm: float
    balance: float | None
    counted: int
    tokens: int
    norm: float
    norms: Mapping[str, float] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    loads: Tensor | None = None
    dropped: Tensor | None = None
    skipped: str | None = None
    seconds: float = 0.0
    data_seconds: float = 0.0
    scale: float | None = None


@dataclass(frozen=True)
class Ended:
    """How a run ended: the exit code (`DONE`, `STOPPED`, `FAILED`), the last step whose result is kept, and why."""

    code: int
    step: int
    reason: str
