"""Keeping experts busy alike in training: the balance losses of a pass, and the bias rule of ``noaux_tc``."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.llama.config import LlamaConfig
from modelwright.layers import Router, Routing


def balance_loss(config: DeepseekV2Config, routings: list[Routing], batch: int) -> Tensor | None:
    """``aux_loss_alpha`` times the balance losses of all layers, summed; None where there is nothing to balance."""
    if not routings or not config.aux_loss_alpha:
        return None
    losses = [routing.balance_loss(batch, config.seq_aux) for routing in routings]
    return torch.stack(losses).sum() * config.aux_loss_alpha


def llama_balance_loss(config: LlamaConfig, routings: list[Routing]) -> Tensor | None:
    """The losses of ``moe_config``, each times its factor, summed over layers; None where there are no experts.

    ``expert`` balances experts, ``device`` groups of them (``expert_group_size``, else the ranks that share them) and
    ``comm`` those ranks; without ``aux_loss_types`` it is ``expert`` by ``aux_loss_factor``. The z-loss comes on top.
    """
    if not routings:
        return None
    moe, ranks = config.moe_config, config.parallel_config.expert_parallel
    groups = {"expert": moe.expert_num, "device": moe.expert_group_size or ranks, "comm": ranks}
    factors = [("expert", moe.aux_loss_factor)]
    if moe.aux_loss_types:
        factors = list(zip(moe.aux_loss_types, moe.aux_loss_factors or [], strict=True))
    losses = [factor * r.group_balance_loss(groups[kind]) for r in routings for kind, factor in factors]
    losses += [moe.z_loss_factor * r.z_loss() for r in routings if moe.z_loss_factor]
    return torch.stack(losses).sum()


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
