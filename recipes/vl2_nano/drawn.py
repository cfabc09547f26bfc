"""Batches that are drawn as they are needed, each by its number alone, so that a run finds its place in them again."""

import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modelwright.data.documents import UNLEARNED, StepBatch
from modelwright.errors import CheckpointError, ConfigError

Make = Callable[[np.random.Generator], dict[str, Tensor]]
_WITHOUT_END = range(2**31)


class _Numbered(Dataset):
    """What ``make`` draws from a seed and a number."""

    def __init__(self, make: Make, seed: int):
        self.make, self.seed = make, seed

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.make(np.random.default_rng([self.seed, number]))


def drawn(make: Make, seed: int, workers: int = 0, first: int = 0) -> Iterator[dict[str, Tensor]]:
    """The batches from the number ``first`` on, without end; how many processes draw them ahead changes none."""
    ahead = 4 if workers else None
    numbers: Any = _WITHOUT_END[first:]
    return iter(
        DataLoader(
            _Numbered(make, seed),
            None,
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=ahead,
            worker_init_fn=_leave_signals,
        )
    )


def _leave_signals(worker: int) -> None:
    """Signals to all processes of a terminal are meant for the loop, which ends its workers itself."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


class DrawnSteps:
    """Steps of one batch each, for a Trainer; its place is the number of steps that were handed out.

    ``make`` gives the model's arguments, int64 ``input_ids`` and ``labels`` [rows, tokens] among them; ``pad_id`` fills
    rows up.
    """

    def __init__(self, make: Make, seed: int, pad_id: int, workers: int = 0):
        self.make, self.seed, self.pad_id, self.workers = make, seed, pad_id, workers
        self.done = 0
        self._coming: Iterator[dict[str, Tensor]] | None = None

    def sources(self) -> list[dict[str, Any]]:
        """See ``modelwright.data.documents.Batches``, here and below."""
        return [{"name": "drawn", "format": "drawn", "rows": None}]

    def steps_in(self, epochs: int) -> int:
        """There are no epochs: a run states its steps."""
        raise ConfigError(f"pictures are drawn without end: a run of them states steps, and no epochs ({epochs})")

    def steps_left(self, epochs: int) -> int:
        return self.steps_in(epochs)

    def steps_until(self, epochs: int) -> int:
        return self.steps_in(epochs)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StepBatch:
        if self._coming is None:
            self._coming = drawn(self.make, self.seed, self.workers, self.done)
        inputs = next(self._coming)
        self.done += 1
        counted = int((inputs["labels"][:, 1:] != UNLEARNED).sum())
        real = int((inputs["input_ids"] != self.pad_id).sum())
        return StepBatch((inputs,), counted, real, len(inputs["input_ids"]), ())

    def state(self) -> dict[str, Any]:
        return {"seed": self.seed, "drawn": self.done}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state["seed"] != self.seed:
            raise CheckpointError(f"the run drew with seed {state['seed']} and cannot go on with seed {self.seed}")
        self.done, self._coming = state["drawn"], None

    def close(self) -> None:
        self._coming = None  # which ends its workers
