"""The loss on held-out rows: of the labels that count, without balance losses and without dropout."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from modelwright.training.learner import Learner


@torch.no_grad()
def held_out_loss(learner: Learner, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The mean loss of a set's labels, its perplexity, and how many they are."""
    total, counted = 0.0, 0
    torch.nn.Module.eval(learner.model)
    try:
        for inputs in batches:
            with learner.weights.products(learner.device.type):
                passed = learner.model.training_loss(**learner.placed(inputs), chunk=learner.chunk())
            total, counted = total + float(passed.total), counted + passed.counts.counted
    finally:
        torch.nn.Module.train(learner.model)
    loss = total / counted if counted else math.nan
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "counted": counted}
