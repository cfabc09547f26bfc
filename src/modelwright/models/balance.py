"""Keeping experts busy alike in training: a pass's balance loss, the bias rule of ``noaux_tc`` (arXiv:2412.19437)."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modelwright.configs import DeepseekV2Config
from modelwright.layers import MoE, Router, Routing


def balance_loss(config: DeepseekV2Config, routings: list[Routing], batch: int) -> Tensor | None:
    """``aux_loss_alpha`` times the balance losses of all layers, summed; None where there is nothing to balance."""
    if not routings or not config.aux_loss_alpha:
        return None
    losses = [routing.balance_loss(batch, config.seq_aux) for routing in routings]
    return torch.stack(losses).sum() * config.aux_loss_alpha


@torch.no_grad()
def accumulate_load(layers: Iterable[nn.Module], routings: list[Routing]) -> None:
    """Add a training pass's choices to the load that each ``noaux_tc`` router keeps until its bias moves."""
    gates = [layer.mlp.gate for layer in layers if isinstance(layer.mlp, MoE)]
    for gate, routing in zip(gates, routings, strict=True):
        if gate.method == "noaux_tc":
            gate.load += routing.load().to(gate.load.dtype)


@torch.no_grad()
def move_bias(gate: Router, rate: float) -> None:
    """Move the bias towards idle experts by ``rate * sign(mean load - load)``, loads summed over ranks; clear them."""
    load = gate.load.float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(load)
    if rate and load.sum() > 0:
        gate.e_score_correction_bias += rate * torch.sign(load.mean() - load)
    gate.load.zero_()
