"""Tiny models of all families, their batches, and runs over them, for the trainer's tests."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from modelwright.configs.run import RunConfig
from modelwright.data.documents import StepBatch
from modelwright.training.learner import Learner
from modelwright.training.tuning import settle
from tests.fakes import MOE, NOAUX, tiny_v2, tiny_vl2, tokens, vl2_inputs
from tests.imagegpts import tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama

MODELS = {
    "llama": lambda **fields: tiny_llama(base=HUGGING_FACE, **fields),
    "mindformers": lambda **fields: tiny_llama(moe_config=EXPERTS, calculate_per_token_loss=True, **fields),
    "latent": lambda **fields: tiny_v2(base=MOE, **fields),
    "steered": lambda **fields: tiny_v2(base=NOAUX, **fields),
    "vl2": lambda **fields: tiny_vl2(language=fields),
    "imagegpt": lambda **fields: tiny_imagegpt(vocab_size=65, **fields),
}


def run_config(**parts: Any) -> RunConfig:
    """A run's config with these parts over quick ones."""
    base = {"model": {"config": {}}, "output": "unused", "steps": 20, "optimizer": {"lr": 1e-2}}
    return RunConfig.of(base | parts)


def learner_of(model: Any, **parts: Any) -> Learner:
    """What steps all of ``model``."""
    config = run_config(**parts)
    tuned = settle(model, config.tune)
    return Learner(model, config, tuned.groups, config.steps or 20, tuned.trains("gate"))


def rows_of(model: Any, rows: int = 8, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Rows of unequal length, each alone; some labels of theirs do not count."""
    found = []
    for row in range(rows):
        if model.config.model_type == "deepseek_vl_v2":
            inputs = vl2_inputs([[(1, 1)] if row % 2 else []], seed=seed + row)
            length = inputs["input_ids"].shape[1]
            inputs = {name: part for name, part in inputs.items() if name != "attention_mask"}
        else:
            length = 5 + (row * 3) % 8
            inputs = {"input_ids": tokens(1, length, seed=100 * seed + row)}
        labels = inputs["input_ids"].clone()
        labels[:, : 1 + row % 3] = -100
        if "images_seq_mask" in inputs:
            labels[inputs["images_seq_mask"]] = -100
        found.append(inputs | {"labels": labels})
    return found


def step_batch(rows: Sequence[Mapping[str, torch.Tensor]], micro: int) -> StepBatch:
    """Those rows in micro-batches of so many, padded on the right."""
    passes = tuple(padded(rows[start : start + micro]) for start in range(0, len(rows), micro))
    return StepBatch(passes, 0, 0, len(rows), (), 0)


def padded(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One micro-batch of rows."""
    most = {name: max(row[name].shape[1] for row in rows) for name in rows[0]}
    fills = {"labels": -100, "input_ids": 3}
    batch = {}
    for name, length in most.items():
        parts = []
        for row in rows:
            part = row[name]
            behind = (0, 0) * (part.dim() - 2)
            parts.append(F.pad(part, (*behind, 0, length - part.shape[1]), value=fills.get(name, 0)))
        batch[name] = torch.cat(parts)
    lengths = torch.tensor([row["input_ids"].shape[1] for row in rows])
    if len(set(lengths.tolist())) > 1:
        batch["attention_mask"] = (torch.arange(most["input_ids"]) < lengths[:, None]).long()
    return batch


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    """Copies of the weights that are stepped."""
    return {name: master.detach().clone() for name, master in learner.weights.masters.items()}
