"""The bias rule of ``noaux_tc`` routers as a method of a model, for any training loop with an optimizer."""

from abc import abstractmethod

import torch
import torch.distributed as dist
from torch import nn

from modelwright.layers.balance import move_biases, steered_routers


class RouterBiases:
    """The bias rule for a model whose config says how fast biases move."""

    @abstractmethod
    def router_bias_rate(self) -> float:
        """By how much a step moves a bias."""

    def update_router_bias(self, group: dist.ProcessGroup | None = None) -> None:
        """Move every ``noaux_tc`` bias by the config's rate times ``sign(mean load - load)`` and forget the loads.

        Call it once per optimizer step (or let :meth:`update_router_bias_with` do so): loads are summed over the
        training passes since the last call and over the ranks of a group.

        Args:
            group: the ranks that have other tokens and the same routers. None means, as in ``torch.distributed``, the
                default group where one is initialised at the time of the call: right where ranks differ in their data
                alone, and not where some hold other layers or copies of the same tokens.
        """
        assert isinstance(self, nn.Module)
        move_biases(steered_routers(self), self.router_bias_rate(), group or _default_group())

    def update_router_bias_with(
        self, optimizer: torch.optim.Optimizer, group: dist.ProcessGroup | None = None
    ) -> torch.utils.hooks.RemovableHandle:
        """Run :meth:`update_router_bias` after each ``optimizer.step()``; the handle removes the hook."""
        return optimizer.register_step_post_hook(lambda *_: self.update_router_bias(group))


def _default_group() -> dist.ProcessGroup | None:
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
