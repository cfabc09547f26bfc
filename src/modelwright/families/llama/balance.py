"""The balance losses of a Llama with experts, as its ``moe_config`` weighs them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modelwright.families.llama.config import LlamaConfig
from modelwright.layers import Routing


def llama_balance_loss(config: LlamaConfig, routings: Sequence[Routing]) -> Tensor | None:
    """The losses of ``moe_config``, each times its factor, summed over layers; None where there are no experts.

    ``expert`` balances experts, ``device`` groups of them (``expert_group_size``, else the ranks that share them) and
    ``comm`` those ranks; without ``aux_loss_types`` it is ``expert`` by ``aux_loss_factor``. The z-loss comes on top.
    """
    if not routings:
        return None
    moe, ranks = config.moe_config, config.parallel_config.expert_parallel
    groups = {"expert": moe.expert_num, "device": moe.expert_group_size or ranks, "comm": ranks}
    losses = [factor * r.group_balance_loss(groups[kind]) for r in routings for kind, factor in _factors(config)]
    losses += [moe.z_loss_factor * r.z_loss() for r in routings if moe.z_loss_factor]
    return torch.stack(losses).sum()


def balances(config: LlamaConfig) -> bool:
    """Whether any of them weighs something, the z-loss aside, which is of each token alone."""
    return any(factor for _, factor in _factors(config))


def _factors(config: LlamaConfig) -> list[tuple[str, float]]:
    moe = config.moe_config
    if moe.aux_loss_types:
        return list(zip(moe.aux_loss_types, moe.aux_loss_factors or [], strict=True))
    return [("expert", moe.aux_loss_factor)]
