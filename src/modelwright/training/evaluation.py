"""Held-out rows: their loss while a run goes on, which is none the wiser, and when it is over."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from modelwright.errors import RequestError, UserError
from modelwright.ops.cross_entropy import rows_at_once
from modelwright.training.report.protocols import Report
from modelwright.training.report.samples import Sample, write_samples

Passes = Iterable[Mapping[str, Any]]
"""What `data.batches.held_out` gives: the arguments of one pass after the other, labels among them."""
HeldOutSets = Mapping[str, Passes | Callable[[], Passes]]
"""Each set by its name: its passes, or what gives them anew each time."""
_MOST = 700.0
"""A loss whose exponential is still a number."""


Answers = Callable[[Any], Mapping[str, Sequence[Sample]]]
"""What a model, in evaluation mode, answers to the first rows of each set (`serving.held_out_answers`)."""


class NoLabels(RequestError):
    """A set has no label that counts."""


@dataclass(frozen=True)
class HeldOutLoss:
    """The mean cross-entropy of a set's labels in nats, balance losses aside, over ``labels`` of them."""

    loss: float
    labels: int

    @property
    def perplexity(self) -> float:
        """``e`` to the loss."""
        return math.exp(min(self.loss, _MOST))

    def as_row(self) -> dict[str, Any]:
        """As a report takes it."""
        return {"loss": self.loss, "perplexity": self.perplexity, "labels": self.labels}


def measure(
    model: Any,
    sets: HeldOutSets,
    *,
    chunk: int | None = None,
    computing: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, HeldOutLoss]:
    """The loss of each set; afterwards the model and all random numbers are as they were.

    Args:
        chunk: how many labels have logits at once; None leaves it to the device.
        computing: the context of a pass, such as autocast.

    Raises:
        NoLabels: a set has no label that counts.
        RequestError: a row cannot be read.
    """
    with untouched(model):
        return {name: held_out_loss(model, passes, name, chunk, computing) for name, passes in sets.items()}


class Evaluation:
    """What a loop does with held-out rows: losses to its report, answers to ``samples/``.

    Args:
        part: when (`configs.run.EvaluatePart`).
        sets: the rows.
        report: takes what was found.
        folder: the run's ``output``.
        answers: the model's answers; None writes none. A share of exact ones is reported beside the loss.
        alive: called before each pass: what measures does not hang.
    """

    def __init__(
        self,
        part: Any,
        sets: HeldOutSets,
        report: Report,
        folder: Path,
        answers: Answers | None = None,
        alive: Callable[[], Any] = lambda: None,
    ):
        self._part, self._report = part, report
        self._sets = {name: partial(_each, passes, alive) for name, passes in sets.items()}
        self._folder, self._answers = folder, answers if part is None or part.generate else None

    def __call__(
        self,
        model: Any,
        step: int,
        *,
        chunk: int | None = None,
        computing: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> dict[str, HeldOutLoss]:
        """Measure, and report it; see `measure`. Answers that cannot be had or written are said, and no more."""
        found: dict[str, HeldOutLoss] = {}
        for name, passes in self._sets.items():
            try:
                found |= measure(model, {name: passes}, chunk=chunk, computing=computing)
            except NoLabels as error:
                self._report.note(str(error))
        rows = {name: loss.as_row() for name, loss in found.items()}
        if self._answers is not None:
            for name, share in self._answered(model, step, self._answers).items():
                rows.setdefault(name, {})["exact"] = share
        self._report.evaluated(step, rows)
        return found

    def _answered(self, model: Any, step: int, answers: Answers) -> dict[str, float]:
        """Write the answers; the share of exact ones of each set that has such."""
        try:
            with untouched(model):
                samples = answers(model)
            write_samples(self._folder, step, samples)
        except Exception as error:  # a run is not ended by what is only looked at
            kind = "" if isinstance(error, UserError | OSError) else f"{type(error).__name__}: "
            self._report.note(f"no sample answers after step {step}: {kind}{error}")
            return {}
        judged = {name: [s.exact for s in each if s.exact is not None] for name, each in samples.items()}
        return {name: sum(exact) / len(exact) for name, exact in judged.items() if exact}


def _each(passes: Passes | Callable[[], Passes], alive: Callable[[], Any]) -> Passes:
    for each in passes() if callable(passes) else passes:
        alive()
        yield each


@torch.no_grad()  # not inference mode: tables that a model makes meanwhile would be of no use to training
def held_out_loss(
    model: Any,
    passes: Passes | Callable[[], Passes],
    name: str = "held out",
    chunk: int | None = None,
    computing: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> HeldOutLoss:
    """The loss of one set by a model in evaluation mode: one sum over all labels, divided once; see `measure`."""
    device = next(model.parameters()).device
    chunk = chunk or rows_at_once(model.config.get_text_config().vocab_size, device)
    total, labels = 0.0, 0
    for each in passes() if callable(passes) else passes:
        arguments = {key: torch.as_tensor(value).to(device) for key, value in each.items()}
        with computing():
            found = model.training_loss(labels=arguments.pop("labels"), chunk=chunk, **arguments)
        total += float(found.total)
        labels += int(found.counts.counted)
    if not labels:
        raise NoLabels(f"{name} has no label that counts, so there is no loss to tell")
    return HeldOutLoss(total / labels, labels)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode meanwhile; then every module's mode and every generator of random numbers is as it was."""
    modes = {module: module.training for module in model.modules()}
    drawn = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])
