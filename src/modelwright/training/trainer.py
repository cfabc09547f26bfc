"""The loop: batches in, optimizer steps, checkpoints and lines out; each of its parts has a file of its own."""

from pathlib import Path
from typing import Any

from modelwright.training.results import Ended, StepResult


class Trainer:
    """A run on one process.

    Args:
        config: the run, a :class:`modelwright.configs.run.RunConfig`.
        model: the model to train in place of the one that the config names.
        processor: what makes documents of examples, in place of the model's own.
        batches: an iterator of :class:`StepBatch`, in place of those of ``config.data``.
        held_out: ``{name: batches}`` for the loss on held-out rows.
        report: what is told of each step, in place of the one that ``config.log`` asks for.
        base: the folder that relative paths of the config start from.
    """

    def __init__(
        self,
        config: Any,
        *,
        model: Any = None,
        processor: Any = None,
        batches: Any = None,
        held_out: Any = None,
        report: Any = None,
        base: Path | None = None,
    ):
        self.config, self.model, self.processor = config, model, processor
        self.batches, self.held_out, self.report = batches, held_out, report
        self.base = Path.cwd() if base is None else base
        self._step = 0

    @property
    def step(self) -> int:
        """How many optimizer steps have been taken, those that were skipped included."""
        return self._step

    def step_on(self, batch: Any) -> StepResult:
        """Take one optimizer step on a :class:`StepBatch`; public, for loops of one's own."""
        raise NotImplementedError

    def fit(self) -> Ended:
        """Train to the end of the run, from its newest checkpoint where there is one."""
        raise NotImplementedError
