"""What the tests of checkpoints save: the settings of a run, tensors of every kind that a run has, and their facts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelwright.training.checkpoints import Checkpoints

FILES = ("state/__0_0.distcp", "state/.metadata", "run.yaml", "train.json", "MANIFEST.json")


@dataclass(frozen=True)
class Part:
    """The fields of a run's ``checkpoint`` that are read."""

    keep: int = 3
    keep_every: int | None = None
    async_: bool = False
    verify: bool = True


@dataclass
class Folder:
    """The checkpoints of a run in a folder, and the sentences that they note."""

    path: Path
    part: Part = Part()
    notes: list[str] = field(default_factory=list)

    def open(self) -> Checkpoints:
        """The run's checkpoints, as it opens them at its start."""
        return Checkpoints(self.path, self.part, self.notes.append)

    def write(self, *steps: int) -> None:
        """Run from step to step, with a checkpoint after each."""
        with self.open() as checkpoints:
            for step in steps:
                save(checkpoints, step)
            checkpoints.wait()

    @property
    def steps(self) -> list[int]:
        """The steps whose folders are there."""
        return sorted(int(path.name[5:]) for path in self.path.glob("step-*"))


def state(step: int) -> dict[str, Tensor]:
    """The tensors of a step: of several types and shapes, with none and with no numbers in them."""
    return {
        "model.weight": torch.arange(12.0).reshape(3, 4) + step,
        "model.bias": torch.full((3,), float(step), dtype=torch.bfloat16),
        "optimizer.step": torch.tensor(step),
        "none": torch.empty(0, 2),
    }


def empty() -> dict[str, Tensor]:
    """Tensors to load into."""
    return {name: torch.zeros_like(tensor) for name, tensor in state(0).items()}


def save(checkpoints: Checkpoints, step: int) -> None:
    """Write the checkpoint of a step."""
    checkpoints.save(step, state(step), facts(step), {"steps": 300})


def facts(step: int) -> Mapping[str, Any]:
    """What is known of a step beside its tensors."""
    return {"tokens": 7 * step, "cursor": [0.1, None]}
