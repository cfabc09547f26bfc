"""Why a run ends before its last step: steps without a number, and a full memory."""

from typing import Any

import torch

from modelwright.training.learner import NOT_FINITE
from modelwright.training.results import StepResult

NAMED_ROWS = 8
"""How many rows of a step that failed are named."""


class LostSteps:
    """Steps in a row that had no number, of which a run may leave some out.

    Args:
        allowed: how many.
    """

    def __init__(self, allowed: int):
        self.allowed, self.count = allowed, 0

    def reason(self, result: StepResult, batch: Any) -> str | None:
        """Why the run ends at this step, if it does, with the rows of its ``StepBatch``."""
        if result.skipped is None or not result.skipped.startswith(NOT_FINITE):
            self.count = 0 if result.skipped is None else self.count
            return None
        self.count += 1
        if self.count <= self.allowed:
            return None
        places = [str(place) for place in batch.places]
        rows = ", ".join(places[:NAMED_ROWS]) + (f" and {len(places) - NAMED_ROWS} more" * (len(places) > NAMED_ROWS))
        often = f", the {self.count}th in a row" if self.allowed else ""
        return f"step {result.step} is {result.skipped}{often}; its rows: {rows or 'not known'}"


def out_of_memory(config: Any, error: BaseException) -> str:
    """What was used when the memory of a run's device was full, and what of its config would need less."""
    used = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    ways = ["recompute: full"] if config.recompute != "full" else ["swap: {}"]
    ways += [f"batch.micro: {config.batch.micro // 2}"] if config.batch.micro > 1 else ["a smaller data.seq_length"]
    ways += ["optimizer.state: int8"] if config.optimizer.state != "int8" else ["tune.lora"]
    return f"the device's memory is full ({used:.1f} GiB were used): set {', '.join(ways)} ({str(error)[:200]})"
