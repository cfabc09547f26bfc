"""AdamW and Adam whose moments are kept in 8 bits (arXiv:2110.02861), in torch's own operations.

Each block of 256 numbers has a scale, its largest, and each number the nearest of 256 shares of it, which lie closer
together towards 0 (the paper's dynamic tree). Of the second moment its root is kept: it spans half the decades, and is
what a step divides by. A root above 0 is never rounded to 0, where a step would divide by ``eps`` alone. As in the
paper, what has few numbers keeps float32: here all that is no matrix.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

BLOCK = 256
"""Numbers that share a scale."""
AT_ONCE = BLOCK * 2**12
"""Numbers that are in float32 at a time."""
DECADES = 7
"""Powers of ten that the shares reach down by."""


class EightBitAdam(torch.optim.Optimizer):
    """AdamW, or Adam where ``decoupled`` is false, by the formulas of torch's.

    The state of a matrix is ``exp_avg`` and ``root_avg_sq``, uint8 of its shape, and ``exp_avg_scale`` and
    ``root_avg_sq_scale``, float32 ``[blocks]``; that of a vector ``exp_avg`` and ``root_avg_sq`` in float32.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = True,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.decoupled = decoupled

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Step every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter] or self._begun(parameter)
                    state["step"] += 1
                    self._step(group, parameter, parameter.grad, state)

    def _begun(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        state["step"] = torch.zeros(())
        for name in ("exp_avg", "root_avg_sq"):
            state[name] = torch.zeros_like(parameter)
            if parameter.dim() > 1:
                state[name] = torch.zeros_like(parameter, dtype=torch.uint8, memory_format=torch.contiguous_format)
                state[f"{name}_scale"] = parameter.new_zeros(-(-parameter.numel() // BLOCK))
        return state

    def _step(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> None:
        count = float(state["step"])
        rates = group["lr"] / (1 - group["betas"][0] ** count), (1 - group["betas"][1] ** count) ** 0.5
        if parameter.dim() < 2:
            self._move(group, rates, parameter, gradient, state["exp_avg"], state["root_avg_sq"])
            return
        weights, gradients = parameter.view(-1), gradient.reshape(-1)
        for start in range(0, len(weights), AT_ONCE):
            own, blocks = slice(start, start + AT_ONCE), slice(start // BLOCK, (start + AT_ONCE) // BLOCK)
            kept = [
                (state[name].view(-1)[own], state[f"{name}_scale"][blocks], signed)
                for name, signed in (("exp_avg", True), ("root_avg_sq", False))
            ]
            moments = [widened(*each) for each in kept]
            self._move(group, rates, weights[own], gradients[own], *moments)
            for moment, each in zip(moments, kept, strict=True):
                narrow(moment, *each)

    def _move(
        self,
        group: dict[str, Any],
        rates: tuple[float, float],
        weight: Tensor,
        gradient: Tensor,
        m: Tensor,
        root: Tensor,
    ) -> None:
        """A step of numbers that are in float32, in place; ``rates`` are those of a moment and of a root, unbiased."""
        (first, second), decay = group["betas"], group["weight_decay"]
        if decay and self.decoupled:
            weight.mul_(1 - group["lr"] * decay)
        elif decay:
            gradient = gradient.add(weight, alpha=decay)
        m.lerp_(gradient, 1 - first)
        root.square_().mul_(second).addcmul_(gradient, gradient, value=1 - second).sqrt_()
        weight.addcdiv_(m, (root / rates[1]).add_(group["eps"]), value=-rates[0])


def widened(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """Numbers in float32 from their codes, uint8 ``[numbers]``, and the scales of their blocks."""
    shares = _shares(signed, codes.device).gather(0, codes.long())
    return shares.mul_(scales.repeat_interleave(BLOCK)[: len(codes)])


def narrow(numbers: Tensor, codes: Tensor, scales: Tensor, signed: bool) -> None:
    """Write the codes of ``numbers`` ``[numbers]``, and the scales of their blocks, in place.

    The nearest share is looked up by the number in bfloat16.
    """
    blocks = torch.nn.functional.pad(numbers, (0, len(scales) * BLOCK - len(numbers))).view(-1, BLOCK)
    torch.amax(blocks.abs(), dim=1, out=scales)
    scaled = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    places = scaled.view(-1)[: len(numbers)].bfloat16().view(torch.int16).int()
    torch.index_select(_nearest(signed, numbers.device), 0, places.add_(2**15), out=codes)
    if not signed:
        codes.clamp_(min=1).mul_(numbers > 0)


@cache
def _shares(signed: bool, device: torch.device) -> Tensor:
    """The 256 shares of a scale that codes stand for, rising.

    Of each power of ten from ``10^-7`` on there are twice as many as of the one below: the middles of equal pieces.
    """
    found = [0.0, 1.0]
    for decade in range(DECADES):
        pieces = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1, dtype=torch.float64)
        middles = (10.0 ** (decade + 1 - DECADES) * (pieces[:-1] + pieces[1:]) / 2).tolist()
        found += middles + [-each for each in middles] * signed
    return torch.tensor(sorted(found), dtype=torch.float64).float().to(device)


@cache
def _nearest(signed: bool, device: torch.device) -> Tensor:
    """The code of each number of bfloat16, by its bits as int16, from the lowest on."""
    shares = _shares(signed, torch.device("cpu"))
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).float().nan_to_num()
    return torch.bucketize(numbers, (shares[1:] + shares[:-1]) / 2).to(torch.uint8).to(device)
