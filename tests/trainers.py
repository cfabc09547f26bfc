"""transformers' Trainer on tiny models: what the tests run it with, and the losses that it logged."""

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.fakes import tokens


class Rows(torch.utils.data.Dataset):
    """Sixteen fixed rows of tokens, which are to be learnt."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = tokens(12, seed=index)
        return {"input_ids": ids, "labels": ids}


def make_trainer(
    model: Any, folder: Path, steps: int, rows: Any = None, batch: int = 2, collator: Any = None, **settings: Any
) -> transformers.Trainer:
    """One that logs each of its ``steps`` and, unless ``settings`` say otherwise, saves nothing."""
    given = {"save_strategy": "no", "logging_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    plan = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=batch, **given | settings
    )
    return transformers.Trainer(model, plan, train_dataset=Rows() if rows is None else rows, data_collator=collator)


def losses_of(trainer: transformers.Trainer) -> list[float]:
    """The loss of each step, once it has trained."""
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
