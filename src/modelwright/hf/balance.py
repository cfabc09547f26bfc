"""Keeping experts busy alike in training: the balance losses of a pass, and the bias rule of ``noaux_tc``."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from modelwright.layers import Router, Routing


def balance_loss(routings: list[Routing], batch: int, factor: float, by_sequence: bool) -> Tensor | None:
    """``factor`` times the balance losses of all layers, summed; None where there is nothing to balance."""
    if not routings or not factor:
        return None
    losses = [routing.balance_loss(batch, by_sequence) for routing in routings]
    return torch.stack(losses).sum() * factor


@torch.no_grad()
def accumulate_load(gates: Iterable[Router], routings: list[Routing]) -> None:
    """Add a training pass's choices to the load that each ``noaux_tc`` router keeps until its bias moves."""
    for gate, routing in zip(gates, routings, strict=True):
        if gate.method == "noaux_tc":
            gate.load += routing.load().to(gate.load.dtype)


@torch.no_grad()
def move_bias(gate: Router, rate: float) -> None:
    """Move the bias towards idle experts by ``rate * sign(mean load - load)`` (arXiv:2412.19437); clear the loads.

    Loads are summed over ranks first.
    """
    load = gate.load.float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(load)
    if rate and load.sum() > 0:
        gate.e_score_correction_bias += rate * torch.sign(load.mean() - load)
    gate.load.zero_()
