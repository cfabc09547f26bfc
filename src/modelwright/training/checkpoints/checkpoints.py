"""The checkpoints of a run: one way to write them, one to find the newest, and what happens when either fails."""

import json
import logging
import os
import platform
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import yaml
from torch import Tensor

from modelwright.durable import replace_durably, sync_folder, write_durably
from modelwright.errors import CheckpointError
from modelwright.training.checkpoints.failed import CheckpointsFailed
from modelwright.training.checkpoints.locks import WriterLock, reading
from modelwright.training.checkpoints.manifest import Manifest
from modelwright.training.checkpoints.retention import complete, hidden_name, left_over, remove, surplus
from modelwright.training.checkpoints.saved import (
    FACTS,
    LATEST,
    RUN,
    STATE,
    Facts,
    Saved,
    found_in,
    saved_in,
    step_folders,
    step_name,
)
from modelwright.training.checkpoints.staging import Staging, on_host
from modelwright.training.checkpoints.tensor_files import read_tensors, write_tensors

logger = logging.getLogger(__name__)


class Checkpoints:
    """Those in one folder, which this process alone writes from the first call of any method on, until `close`.

    Args:
        folder: where they lie; made where there is none.
        part: ``keep``, ``keep_every``, ``async_`` and ``verify`` of the run's config.
        note: told, in the thread of the caller, of each sentence that the user should read.
    """

    def __init__(self, folder: Path, part: Any, note: Callable[[str], None] = logger.warning):
        self.folder, self.part, self._note = folder, part, note
        self._lock: WriterLock | None = None
        self._staging = Staging()
        self._job: _Job | None = None
        self._failures = 0
        self._step: int | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Take the right to write.

        Raises:
            CheckpointError: another process has it, or the folder cannot be written.
        """
        if self._lock is None:
            self._lock = WriterLock.take(self.folder)

    def close(self) -> None:
        """Wait for what is being written, and give back the right to write; errors of it are left to `wait`."""
        if self._job is not None:
            self._job.join()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Facts, run: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step; the newest one of that step already, it is left as it is.

        Where ``part.async_`` is set, this returns when the tensors are copied, and a thread writes. A failure is
        noted in the next call, and the run goes on to its next checkpoint.

        Args:
            step: how many optimizer steps have been taken.
            tensors: all that is to be read again, by name.
            facts: the rest, as JSON.
            run: the run's config, as YAML.

        Raises:
            CheckpointsFailed: this is the second failure in a row.
            CheckpointError: another process writes into the folder.
        """
        self.open()
        self._settle()
        if self._step == step:
            return
        known = {"step": step, **facts, "versions": _versions()}
        texts = {FACTS: json.dumps(known, indent=1) + "\n", RUN: yaml.safe_dump(dict(run), sort_keys=False)}
        staged = self._staging.copy(tensors) if self.part.async_ else on_host(tensors)
        self._job = _Job(self.folder, step, staged, texts, self.part.keep, self.part.keep_every)
        self._job.start(apart=self.part.async_)
        if not self.part.async_:
            self._settle()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk; one that could not be written is tried once more.

        Raises:
            CheckpointsFailed: it cannot be written.
        """
        job = self._job
        self._settle()
        if job is not None and job.error is not None:
            self._job = job.again()
            self._job.start(apart=False)
            self._settle()
            if self._failures:
                raise CheckpointsFailed(f"the last checkpoint (step {job.step}) was not written: {_said(job.error)}")

    def newest(self) -> Saved | None:
        """The last checkpoint that is whole, or None where there is none at all; the others are noted.

        Raises:
            CheckpointsFailed: there are some, and none is whole.
            CheckpointError: another process writes into the folder.
        """
        self.open()
        self._settle()
        reasons: list[str] = []
        for entry in reversed(saved_in(self.folder)):
            try:
                if not isinstance(entry, Saved):
                    raise entry[1]
                entry.verify(hashes=self.part.verify)
            except CheckpointError as error:
                reasons.append(str(error))
                continue
            if reasons:
                self._note(
                    f"going on from {entry.folder.name}, since a later checkpoint is broken: {'; '.join(reasons)}"
                )
            return entry
        if reasons:
            raise CheckpointsFailed(f"no checkpoint is whole, and none was removed: {'; '.join(reasons)}")
        return None

    def chosen(self, resume: str | Path = "auto") -> Saved | None:
        """The checkpoint that a run goes on from, or None where it begins.

        Args:
            resume: ``auto``, the newest one that is whole; ``none``; or a place: a checkpoint, or the output of a run.

        Raises:
            CheckpointsFailed: as `newest`.
            CheckpointError: what was named is no whole checkpoint; or there are checkpoints, and the run is to begin.
        """
        if resume == "auto":
            return self.newest()
        self.open()
        if resume == "none":
            steps = [step for step, _ in step_folders(self.folder)]
            if steps:
                raise CheckpointError(
                    f"{self.folder} holds {len(steps)} checkpoints, up to step {max(steps)}, among which those of a "
                    "run from the beginning would be lost: name another output, or resume auto"
                )
            return None
        entries = found_in(Path(resume))
        if not entries:
            raise CheckpointError(f"{resume} holds no checkpoint: name one, or the output of a run")
        last = entries[-1]
        if not isinstance(last, Saved):
            raise last[1]
        last.verify(hashes=self.part.verify)
        return last

    def load(self, saved: Saved, into: Mapping[str, Tensor]) -> Facts:
        """Fill tensors in place with those of a checkpoint, and give its facts.

        Raises:
            CheckpointError: it does not fit, or is damaged; the tensors may then hold a part of it.
        """
        with reading(saved.folder):
            read_tensors(saved.state, into)
            facts = saved.facts()
        if saved.folder.parent == self.folder:
            self._step = saved.step
        return facts

    def _settle(self) -> None:
        """Wait for the last job, pass on its notes, and count its failure or raise it."""
        job, self._job = self._job, None
        if job is None:
            return
        job.join()
        for sentence in job.notes:
            self._note(sentence)
        if job.error is None:
            self._failures, self._step = 0, job.step
            return
        if not isinstance(job.error, OSError | CheckpointError):
            raise job.error
        self._failures += 1
        said = f"the checkpoint of step {job.step} was not written: {_said(job.error)}"
        if self._failures > 1:
            raise CheckpointsFailed(f"{said}; nor was the one before, and this run ends") from job.error
        self._note(f"{said}; the run goes on, and tries again at its next checkpoint")


@dataclass
class _Job:
    """One checkpoint to be written, by this thread or by another."""

    folder: Path
    step: int
    tensors: Mapping[str, Tensor]
    texts: Mapping[str, str]
    keep: int
    keep_every: int | None
    error: BaseException | None = None
    notes: list[str] = field(default_factory=list)
    thread: threading.Thread | None = None

    def start(self, apart: bool) -> None:
        if apart:
            self.thread = threading.Thread(target=self.run, name=f"checkpoint of step {self.step}")
            self.thread.start()
        else:
            self.run()

    def join(self) -> None:
        if self.thread is not None:
            self.thread.join()

    def again(self) -> "_Job":
        return _Job(self.folder, self.step, self.tensors, self.texts, self.keep, self.keep_every)

    def run(self) -> None:
        try:
            self.write()
        except BaseException as error:  # kept for the thread that asked
            self.error = error

    def write(self) -> None:
        target = self.folder / step_name(self.step)
        part = hidden_name(target, "writing")
        try:
            part.mkdir(parents=True)
            write_tensors(part / STATE, self.tensors)
            for name, text in self.texts.items():
                write_durably(part / name, text)
            sync_folder(part / STATE)
            entries = saved_in(self.folder)
            latest = max((entry.manifest.sequence for entry in entries if isinstance(entry, Saved)), default=0)
            Manifest.of(part, self.step, latest + 1).write(part)
            sync_folder(part)
            if target.exists():  # broken, or of a run that went on from an earlier step
                os.rename(target, hidden_name(target, "replaced"))
            os.rename(part, target)
            sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)  # its room is needed for the next
            raise
        self.tidy(target)

    def tidy(self, target: Path) -> None:
        """Name the new checkpoint the latest, and remove what it makes superfluous; neither is worth a failure."""
        try:
            replace_durably(self.folder / LATEST, f"{target.name}\n", f".{LATEST}.part")
            for path in left_over(self.folder):
                shutil.rmtree(path)
            for saved in surplus(complete(saved_in(self.folder)), self.keep, self.keep_every):
                remove(saved)
        except OSError as error:
            self.notes.append(f"{target} is written, and tidying up after it failed: {_said(error)}")


def _said(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    return str(error)


def _versions() -> dict[str, str]:
    return {
        "modelwright": version("modelwright"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
