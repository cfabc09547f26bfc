"""Lion (arXiv:2302.06675, algorithm 2): the sign of a momentum, one moment a weight."""

from collections.abc import Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """``w -= lr * (sign(b1 * m + (1 - b1) * g) + decay * w)``, then ``m = b2 * m + (1 - b2) * g``."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Step every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                first, second = group["betas"]
                moment, gradient = state["exp_avg"], parameter.grad
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(moment.lerp(gradient, 1 - first).sign_(), alpha=-group["lr"])
                moment.lerp_(gradient, 1 - second)
