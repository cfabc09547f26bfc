"""Checkpoints on disk: where they lie, which is the newest, and what each is of."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from modelwright.errors import CheckpointError
from modelwright.training.checkpoints.manifest import Manifest

STATE, RUN, FACTS, LATEST = "state", "run.yaml", "train.json", "latest"
CHECKPOINTS = "checkpoints"
"""The folder of checkpoints in a run's ``output``."""
_STEP = re.compile(r"step-(\d{6,18})")
Facts = Mapping[str, Any]
"""What is known of a run at a step beside its tensors, as JSON: the step, tokens, random numbers, data cursor."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint whose manifest has been read.

    Attributes:
        folder: where it lies.
        manifest: what it must hold.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def at(cls, folder: Path) -> Self:
        """The checkpoint in a folder.

        Raises:
            CheckpointError: it has no manifest, or a damaged one.
        """
        return cls(folder, Manifest.read(folder))

    @property
    def step(self) -> int:
        """How many optimizer steps had been taken."""
        return self.manifest.step

    @property
    def state(self) -> Path:
        """The folder of its tensors."""
        return self.folder / STATE

    def verify(self, hashes: bool = True) -> None:
        """Raise a :class:`CheckpointError` that names the first file that is not as it was written."""
        self.manifest.check(self.folder, hashes)

    def facts(self) -> Facts:
        """What is known of the run at this step beside its tensors."""
        return _parsed(self.folder / FACTS, json.loads)

    def run(self) -> Mapping[str, Any]:
        """The run's config."""
        return _parsed(self.folder / RUN, yaml.safe_load)


def step_name(step: int) -> str:
    """The name of the folder of a step's checkpoint."""
    return f"step-{step:06d}"


def step_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """Step and place of all that is called like a checkpoint, complete or not, in no order."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if (match := _STEP.fullmatch(path.name)) and path.is_dir():
            yield int(match[1]), path


def saved_in(folder: Path) -> list[Saved | tuple[Path, CheckpointError]]:
    """What a run's folder of checkpoints holds, in the order of writing; one without its manifest, with the reason.

    Such a one has lost its number: it takes the place of its step.
    """
    order, latest = [], 0
    for step, path in sorted(step_folders(folder)):
        try:
            saved = Saved.at(path)
        except CheckpointError as error:
            order.append(((latest, 1, step), (path, error)))
        else:
            latest = max(latest, saved.manifest.sequence)
            order.append(((saved.manifest.sequence, 0, step), saved))
    return [entry for _, entry in sorted(order, key=lambda pair: pair[0])]


def found_in(output: Path) -> list[Saved | tuple[Path, CheckpointError]]:
    """What the ``output`` of a run, its folder of checkpoints or one checkpoint holds, in the order of writing."""
    for folder in (output, output / CHECKPOINTS):
        if any(step_folders(folder)):
            return saved_in(folder)
    entries = saved_in(output.parent) if _STEP.fullmatch(output.name) else []
    return [entry for entry in entries if (entry.folder if isinstance(entry, Saved) else entry[0]) == output]


def _parsed(path: Path, parse: Any) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
