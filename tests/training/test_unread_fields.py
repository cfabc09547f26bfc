"""What an optimizer or a schedule does not read of its section is listed, and what it reads is not."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import nn

from modelwright.configs.run import RunConfig
from modelwright.configs.run.learning import MINDFORMERS_SCHEDULES, OPTIMIZERS, SCHEDULES, OptimizerPart, SchedulePart
from modelwright.errors import ConfigError
from modelwright.training.optimizers import Optimizers, Steered
from modelwright.training.schedules import rate_at

OF_OPTIMIZERS: dict[str, Any] = {
    "betas": (0.5, 0.6),
    "eps": 0.1,
    "weight_decay": 0.5,
    "decay": "all",
    "momentum": 0.5,
    "fused": False,
    "state": "int8",
}
OF_SCHEDULES: dict[str, Any] = {
    "warmup": 5.0,
    "end": 0.25,
    "decay": 8.0,
    "decay_start": 9.0,
    "keep": 4.0,
    "end_after": 0.75,
    "power": 3.0,
    "cycles": 3.0,
    "warmup_init": 0.01,
}


def stepped(part: OptimizerPart) -> Any:
    """Some weights, some steps later, and how the optimizer was told to compute."""
    torch.manual_seed(0)
    weights = {"matrix": nn.Parameter(torch.randn(64, 64)), "bias": nn.Parameter(torch.randn(64))}
    steered = [Steered(name, w, "dense", None, w.dim() > 1, w.dim() > 1) for name, w in weights.items()]
    optimizers = Optimizers(part, steered)
    for _ in range(4):
        for weight in weights.values():
            weight.grad = torch.randn_like(weight)
        optimizers.step()
    told = [(each.defaults.get("fused"), each.defaults.get("foreach")) for each in optimizers.all]
    return {name: weight.detach() for name, weight in weights.items()}, told


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("field", OF_OPTIMIZERS)
def test_a_field_of_an_optimizer_acts_or_is_listed(name, field):
    usual = OptimizerPart(name=name, lr=0.05)
    try:
        part = replace(usual, **{field: OF_OPTIMIZERS[field]})
    except ConfigError:
        return  # refused: neither
    (before, how), (after, other) = stepped(usual), stepped(part)
    acts = how != other or any(not torch.equal(before[weight], after[weight]) for weight in before)
    assert acts != (field in part.without_effect())


@pytest.mark.parametrize("name", SCHEDULES | MINDFORMERS_SCHEDULES)
@pytest.mark.parametrize("field", OF_SCHEDULES)
def test_a_field_of_a_schedule_acts_or_is_listed(name, field):
    usual = SchedulePart(name=name, warmup=3.0, end=0.125)
    part = replace(usual, **{field: OF_SCHEDULES[field]})
    steps = range(1, 80)  # beyond the 24 of the run, where some begin again
    rates, others = ([rate_at(each, 1.0, 24, step) for step in steps] for each in (usual, part))
    assert (rates != others) != (field in part.without_effect())


def test_every_field_is_tried():
    of_all = {"name", "lr", "master"}
    assert {each.name for each in fields(OptimizerPart)} == OF_OPTIMIZERS.keys() | of_all
    assert {each.name for each in fields(SchedulePart)} == OF_SCHEDULES.keys() | {"name", "total", "counts_from"}


def test_a_run_lists_them_with_what_its_other_values_leave_idle():
    run = RunConfig.of(
        {
            "model": {"path": "m", "dtype": "bfloat16"},
            "output": "o",
            "steps": 2,
            "optimizer": {"name": "lion", "momentum": 0.5},
            "schedule": {"name": "linear", "cycles": 2},
            "precision": {"scale": {}},
            "evaluate": {"every": 2},
            "limits": {"spike_of": "norm"},
        }
    )
    assert run.fields_without_effect() == {
        "optimizer.momentum": "lion has no use for it",
        "schedule.cycles": "linear has no use for it",
        "precision.scale": "it keeps float16's gradients, and the run computes in bfloat16",
        "evaluate.every": "data.eval names no rows to measure",
        "limits.spike_of": "limits.spike is not given",
    }
    assert RunConfig.of(run.to_dict() | {"data": {"eval": ["a.jsonl"]}}).fields_without_effect().keys() == {
        "optimizer.momentum", "schedule.cycles", "precision.scale", "limits.spike_of",
    }  # fmt: skip
