"""What a trainer tells a report, and what a report tells a writer; a report never prints and never stops a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from modelwright.training.results import Ended, StepResult


@dataclass(frozen=True)
class RunFacts:
    """What holds for a whole run, told before its first step.

    Attributes:
        steps: optimizer steps of the whole run.
        done: of these, how many were done before: 0, or where a checkpoint was continued.
        command: what was typed, word by word.
        config: the run's config as plain values.
        layout: the name of each degree of parallelism and its size.
        parameters: rows of the table of parts: ``part``, ``trainable`` and ``total`` (numbers), ``rate``.
        device: what the model is computed on, as torch names it.
        dtype: the type that products are taken in, such as ``bfloat16``.
        counts: the model's sizes, as ``modelwright.planner.counting.count`` gives them; None leaves FLOPs unsaid.
        data: what was found of the data: each source's name, format and rows.
    """

    steps: int
    done: int = 0
    command: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, int] = field(default_factory=dict)
    parameters: Sequence[Mapping[str, Any]] = ()
    device: str = "cpu"
    dtype: str = "float32"
    counts: Any = None
    data: Sequence[Mapping[str, Any]] = ()


class Report(Protocol):
    """What a trainer tells of a run: `begin` once, `step` after every step, `end` once."""

    def begin(self, facts: RunFacts) -> None:
        """Before the first step, and after a checkpoint was found to continue."""
        ...

    def step(self, result: StepResult, more: Mapping[str, Any]) -> None:
        """After a step.

        ``more`` may hold ``batch`` (the ``StepBatch``, of which FLOPs are counted), ``param_norm`` (the norm of all
        parameters, a number or a tensor of one) and other names with numbers, which are logged as they are. What costs
        something to compute may be a function without arguments, called only for a step that is logged.
        """
        ...

    def evaluated(self, step: int, found: Mapping[str, Mapping[str, Any]]) -> None:
        """What held-out sets gave after a step: the name of each set, and its numbers."""
        ...

    def note(self, sentence: str) -> None:
        """Something that people should know."""
        ...

    def end(self, ended: Ended) -> None:
        """After the last step; files are complete when it returns."""
        ...


class Writer(Protocol):
    """Another program that shows curves; one that raises is left out from then on."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, all of them finite, names with slashes between their parts."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...
