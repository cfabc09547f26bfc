"""The loop: batches in, optimizer steps, checkpoints and lines out; each of its parts has a file of its own."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from modelwright.data.batches import HeldOut
from modelwright.errors import CheckpointError, RequestError
from modelwright.ops.freed_memory import keep_freed_memory
from modelwright.planner.counting import count
from modelwright.training import state
from modelwright.training.build import build_data, build_model, found_at, steps_of_epochs, unread_of
from modelwright.training.checkpoints import Checkpoints, Stopping
from modelwright.training.checkpoints.export import check_export, export
from modelwright.training.evaluation import Evaluation
from modelwright.training.failures import LostSteps, out_of_memory
from modelwright.training.learner import Learner
from modelwright.training.report import RunFacts
from modelwright.training.report.watchdog import Watchdog
from modelwright.training.results import DONE, FAILED, STOPPED, Ended, StepResult
from modelwright.training.silence import Silence
from modelwright.training.tuning import settle

CHECKPOINTS, EXPORT = "checkpoints", "export"
"""The folders in a run's output."""


class Trainer:
    """A run on one process.

    Args:
        config: the run, a :class:`modelwright.configs.run.RunConfig`.
        model: the model to train in place of the one that the config names.
        processor: what makes documents of examples, in place of the model's own.
        batches: an iterator of :class:`StepBatch` with ``state()`` and ``restore(state)``, in place of ``config.data``.
        held_out: ``{name: batches}`` for the loss on held-out rows; of each, the model's arguments.
        report: what is told of each step; None: nothing.
        base: the folder that relative paths of the config start from.
        answers: what a model and its processor answer to held-out rows, by set, for `evaluate.generate`
            (`serving.held_out_answers.answers_of`).

    Raises:
        ConfigError, CheckpointError, RequestError: the run cannot be built; nothing has been written.
    """

    def __init__(
        self,
        config: Any,
        *,
        model: Any = None,
        processor: Any = None,
        batches: Any = None,
        held_out: Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
        report: Any = None,
        base: Path | None = None,
        answers: Callable[[Any, Any], Mapping[str, Sequence[Any]]] | None = None,
    ):
        keep_freed_memory()  # of one step for the next
        self.answers, self.base = answers, Path.cwd() if base is None else base
        self.report = Silence() if report is None else report
        if model is None:
            model, found = build_model(config.model, config.seed, self.base)
            processor = found if processor is None else processor
        self.model, self.processor = model, processor
        self.config = config = config.filled_by(model.config)
        config.check_ranks()
        adapter = None if config.model.adapter is None else found_at(config.model.adapter, self.base)
        self.tuned = settle(model, config.tune, adapter=adapter, seed=config.seed)
        check_export(model, config)
        if batches is None and held_out is None:
            batches, held_out = build_data(config, model.config, processor, self.base)
        self.batches: Any = batches
        self.held_out = held_out or {}
        self.steps = config.steps or (1 if batches is None else steps_of_epochs(config, batches))
        self.learner = Learner(model, config, self.tuned.groups, self.steps, self.tuned.trains("gate"))
        self.output = Path(config.output)
        self._step, self._tokens, self._lost = 0, 0, LostSteps(config.limits.skips)

    @property
    def step(self) -> int:
        """How many optimizer steps have been taken, those that were skipped included."""
        return self._step

    def step_on(self, batch: Any) -> StepResult:
        """Take one optimizer step on a :class:`StepBatch`; public, for loops of one's own."""
        result = self.learner.step_on(self._step + 1, batch)
        self._step, self._tokens = self._step + 1, self._tokens + result.tokens
        return result

    def fit(self) -> Ended:
        """Train to the end of the run, from its newest checkpoint where there is one.

        What ends a run early is in the result; what was wrong before its first step is raised.
        """
        if self.config.evaluate.only:
            self._begin()
            self._evaluate(None)
            return self._ended(Ended(DONE, 0, "the held-out rows are measured"))
        with ExitStack() as stack:
            note = self.report.note
            checkpoints = stack.enter_context(Checkpoints(self.output / CHECKPOINTS, self.config.checkpoint, note))
            self._resume(checkpoints)
            self._begin()
            stopping = stack.enter_context(Stopping(self.config.checkpoint.minutes))
            watchdog = Watchdog(self.config.limits.patience, self.output, note)
            watchdog.start()
            stack.callback(watchdog.stop)
            stack.callback(self.batches.close)
            try:
                ended = self._run(checkpoints, stopping, watchdog)
            except (CheckpointError, RequestError) as error:  # of checkpoints, or of rows
                ended = Ended(FAILED, self._step, str(error))
            except torch.OutOfMemoryError as error:
                ended = Ended(FAILED, self._step, out_of_memory(self.config, error))
        return self._ended(ended)

    def _run(self, checkpoints: Checkpoints, stopping: Stopping, watchdog: Watchdog) -> Ended:
        last = min(self.steps, self.config.limits.stop or self.steps)
        seconds, saved_at = self.config.checkpoint.seconds, monotonic()
        epochs_end = self._next_end_of_epochs(watchdog)
        for before, result, batch in self._taken(last, checkpoints):
            if (reason := self._lost.reason(result, batch)) is not None:
                self._step -= 1  # whose weights are still there
                self._save(checkpoints, before)
                checkpoints.wait()
                return Ended(FAILED, self._step, reason)
            watchdog.alive(f"what comes after step {self._step}")
            ended = self._step == epochs_end
            epochs_end = self._next_end_of_epochs(watchdog) if ended else epochs_end
            if (ended or self._is_due(self.config.evaluate.every)) and self._step < last:
                try:
                    self._evaluate(watchdog)
                except (RequestError, torch.OutOfMemoryError):
                    self._save(checkpoints)
                    checkpoints.wait()
                    raise
            asked = stopping.after_step()
            late = seconds is not None and monotonic() - saved_at >= seconds
            if asked.save or late or self._is_due(self.config.checkpoint.every):
                self._save(checkpoints)
                stopping.saved()
                saved_at = monotonic()
            if asked.stop is not None:
                checkpoints.wait()
                return Ended(STOPPED, self._step, f"{asked.stop} stopped the run after step {self._step}")
            watchdog.alive(f"step {self._step + 1}")
        watchdog.alive("the end of the run")
        self._save(checkpoints)
        checkpoints.wait()
        with watchdog.resting():  # a large model takes as long as it takes
            self._export(checkpoints)
        watchdog.alive("the last held-out rows")
        self._evaluate(watchdog)
        return Ended(DONE, self._step, f"{self._step} steps were taken")

    def _taken(self, last: int, checkpoints: Checkpoints) -> Iterator[tuple[Any, StepResult, Any]]:
        """Each step: where the data stood before it, its result, and its batch; where none comes, a checkpoint."""
        first = self._step
        while self._step < last:
            before, started = self.batches.state(), monotonic()
            try:
                batch = next(self.batches)
            except RequestError:  # broken rows, or a dead worker
                if self._step:
                    self._save(checkpoints, before)
                    checkpoints.wait()
                raise
            waited = monotonic() - started
            if self._step == first:
                for sentence in self.tuned.notes(any("images" in micro for micro in batch.micro)):
                    self.report.note(sentence)
            result = replace(self.step_on(batch), data_seconds=waited)
            self.report.step(result, {"batch": batch, "param_norm": self._weight_norm})
            yield before, result, batch

    def _next_end_of_epochs(self, watchdog: Watchdog) -> int | None:
        """The step after which the next of those epochs has ended that `evaluate.epochs` names; None without it."""
        epochs = self.config.evaluate.epochs
        if epochs is None:
            return None
        with watchdog.resting():  # all documents may be made for it
            return self._step + self.batches.steps_until(epochs)

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self._step % every == 0

    # State

    def _save(self, checkpoints: Checkpoints, cursor: Any = None) -> None:
        facts = state.facts(self.learner) | {
            "tokens": self._tokens,
            "lost": self._lost.count,
            "planned": self._planned(),
            "data": self.batches.state() if cursor is None else cursor,
            "base": str(self.base.absolute()),
        }
        checkpoints.save(self._step, state.tensors(self.learner), facts, self.config.to_dict())

    def _resume(self, checkpoints: Checkpoints) -> None:
        asked = self.config.checkpoint.resume
        saved = checkpoints.chosen(asked if asked in ("auto", "none") else found_at(asked, self.base))
        if saved is None:
            return
        facts = checkpoints.load(saved, state.tensors(self.learner))
        state.taken_over(self.learner, facts)
        self._step, self._tokens, self._lost.count = saved.step, facts["tokens"], facts["lost"]
        if self.config.data.continues:
            self.batches.restore(facts["data"])
            self._plan_again(facts.get("planned"))
        self.report.note(f"going on after step {saved.step}, from {saved.folder}")

    def _planned(self) -> dict[str, Any]:
        """The steps of the run, and what they were counted by."""
        return {"steps": self.steps, "epochs": self.config.epochs, "rows": self.config.batch.global_}

    def _plan_again(self, before: Mapping[str, Any] | None) -> None:
        """Count the steps of a run of epochs anew where they are others than when its checkpoint was written.

        Otherwise they stay, though rows that were left out since are fewer steps: rates go on as they were planned.
        """
        if self.config.steps is not None:
            return
        if before is None or before != self._planned() | {"steps": before["steps"]}:
            self.steps = self._step + self.batches.steps_left(self.config.epochs)
        else:
            self.steps = before["steps"]
        self.learner.total = self.steps

    def _export(self, checkpoints: Checkpoints) -> None:
        """The official folder, or the adapter, of the last step; what hinders it is said, and the run is done."""
        saved, out = checkpoints.newest(), self.output / EXPORT
        if self.config.checkpoint.on_end != "export" or saved is None:
            return
        if out.exists():  # of the run before it was continued
            out = self.output / f"{EXPORT}-{self._step}"
        part = self.config.model
        try:
            what = export(
                saved,
                out,
                source=self._place(part.path),
                adapter=self._folder(part.adapter),
                processor=self._folder(part.processor),
            )
        except (CheckpointError, OSError) as error:
            self.report.note(f"the run is done, and nothing was exported: {error}")
        else:
            self.report.note(f"the {what} is in {out}")

    def _place(self, path: str | None) -> str | None:
        return None if path is None else found_at(path, self.base)

    def _folder(self, path: str | None) -> Path | None:
        return None if path is None else Path(found_at(path, self.base))

    # What is said

    def _begin(self) -> None:
        facts = self._facts()
        self.report.begin(facts)
        unread = [(source["name"], source.get("unread", ())) for source in facts.data]
        unread += [(name, held.source.unread()) for name, held in self.held_out.items() if isinstance(held, HeldOut)]
        for name, names in unread:
            if (sentence := unread_of(name, names)) is not None:
                self.report.note(sentence)

    def _evaluate(self, watchdog: Watchdog | None) -> None:
        """Measure what is held out; passes are signs of life, and answers take as long as they take."""
        if not self.held_out:
            return
        asked, processor, learner = self.answers, self.processor, self.learner

        def drawn(model: Any) -> Any:
            assert asked is not None
            with nullcontext() if watchdog is None else watchdog.resting():
                return asked(model, processor)

        alive = partial(watchdog.alive, f"the held-out rows after step {self._step}") if watchdog else lambda: None
        answers = None if asked is None else drawn
        evaluation = Evaluation(self.config.evaluate, self.held_out, self.report, self.output, answers, alive)
        products = partial(learner.weights.products, learner.device.type)
        evaluation(self.model, self._step, chunk=learner.chunk(), computing=products)

    @torch.no_grad()
    def _weight_norm(self) -> Tensor:
        return torch.stack([master.norm() for master in self.learner.weights.masters.values()]).norm()

    def _facts(self) -> RunFacts:
        table = [asdict(row) for row in self.tuned.table]
        return RunFacts(
            steps=self.steps,
            done=self._step,
            command=tuple(sys.argv),
            config=self.config.to_dict(),
            layout={name: 1 for name in self.config.parallel.degrees},  # a run on one rank
            parameters=table,
            device=self.learner.device.type,
            dtype=str(self.learner.weights.compute).removeprefix("torch."),
            counts=count(self.model.config),
            data=[] if self.batches is None else self.batches.sources(),
        )

    def _ended(self, ended: Ended) -> Ended:
        self.report.end(ended)
        return ended
