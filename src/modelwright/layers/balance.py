"""Keeping experts busy alike in training: the balance losses of a pass, and the bias rule of ``noaux_tc``."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modelwright.layers.moe import Router, Routing


def balance_loss(
    routings: Sequence[Routing], batch: int, factor: float, by_sequence: bool, documents: Tensor | None = None
) -> Tensor | None:
    """``factor`` times the balance losses of all layers, summed; None where there is nothing to balance.

    The sequences are the rows, or the ``documents`` ``[batch, tokens]`` in them.
    """
    if not routings or not factor:
        return None
    losses = [routing.balance_loss(batch, by_sequence, documents) for routing in routings]
    return torch.stack(losses).sum() * factor


@torch.no_grad()
def accumulate_load(layer: nn.Module, routing: Routing) -> None:
    """Add a training pass's choices to what a ``noaux_tc`` router of ``layer`` counts until its bias moves."""
    for router in steered_routers(layer):
        counted = routing.load()
        router.load = router.load.to(counted.device) + counted.long()


@torch.no_grad()
def move_biases(routers: Iterable[Router], rate: float, group: dist.ProcessGroup | None) -> None:
    """Move each bias towards idle experts by ``rate * sign(mean load - load)`` (arXiv:2412.19437); clear the loads.

    Args:
        routers: those of method ``noaux_tc``; each rank of the group brings the same ones in the same order.
        group: the ranks whose loads are summed first, in one exchange; None counts this process's alone.
    """
    routers = list(routers)
    if not routers:
        return
    joined = torch.cat([router.load.float() for router in routers])
    if group is not None:
        dist.all_reduce(joined, group=group)
    for router, load in zip(routers, joined.split([len(router.load) for router in routers]), strict=True):
        if rate:
            router.e_score_correction_bias += rate * torch.sign(load.mean() - load)  # nothing where nothing was chosen
        router.load.zero_()


def drops_choices(model: nn.Module) -> bool:
    """Whether experts in ``model`` have a capacity in training, beyond which a choice gets no weight."""
    return any(isinstance(part, Router) and part.capacity is not None for part in model.modules())


def steered_routers(model: nn.Module) -> list[Router]:
    """The routers in ``model`` that a bias steers."""
    return [part for part in model.modules() if isinstance(part, Router) and part.method == "noaux_tc"]
