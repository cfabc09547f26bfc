"""The types of a run's numbers: weights stepped in fp32, products in fp32, bf16 or fp16, and fp16's loss scale.

In a low type the model holds copies of its weights, which are made once a step, and the optimizer the weights in fp32;
autocast instead would cast at every use. Routers and root-mean-square norms keep fp32, in which they compute anyway.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from modelwright.layers import RMSNorm, Router
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.products import PIECE
from modelwright.planner.training import Held

LEAST_SCALE = 1.0
"""A loss scale that would fall below it helps no more: the gradients themselves are not finite."""


class Weights:
    """The weights of a model as they are stepped, and their copies that it computes with.

    Args:
        model: its floating parameters are cast in place where ``compute`` is a low type.
        compute: the type of products.
        autocast: cast at every use in place of keeping copies.
    """

    def __init__(self, model: nn.Module, compute: torch.dtype, autocast: bool = False):
        self.compute, self.autocast = compute, autocast
        self.masters: dict[str, nn.Parameter] = {}
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        kept = _kept_in_fp32(model)
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            stays = autocast or compute == torch.float32 or id(parameter) in kept
            own = torch.float32 if stays else compute
            if parameter.requires_grad:
                self.masters[name] = self._master(parameter, own)
            elif not autocast:
                parameter.data = parameter.data.to(own)

    def _master(self, parameter: nn.Parameter, own: torch.dtype) -> nn.Parameter:
        whole = parameter.data.float()
        if own == torch.float32:
            parameter.data = whole
            return parameter
        master = nn.Parameter(whole.clone() if whole is parameter.data else whole)
        parameter.data = parameter.data.to(own)
        parameter.register_post_accumulate_grad_hook(lambda copy: _hand_over(copy, master))
        self._pairs.append((parameter, master))
        return master

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the copies anew, after a step."""
        if self._pairs:
            copies, masters = zip(*self._pairs, strict=True)
            torch._foreach_copy_(copies, masters)  # pyright: ignore[reportPrivateImportUsage]

    def products(self, device: str) -> AbstractContextManager[Any]:
        """What a pass runs in."""
        if self.autocast and self.compute != torch.float32:
            return torch.autocast(device, self.compute)
        return nullcontext()

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The whole model's tensors by its own names, with the weights that are stepped; none is copied."""
        state = dict(model.state_dict())
        of_copy = {id(copy): master for copy, master in self._pairs}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if id(parameter) in of_copy:
                state[name] = of_copy[id(parameter)].data
        return state


def held_by(model: nn.Module, compute: torch.dtype, autocast: bool = False, device: torch.device | None = None) -> Held:
    """What :class:`Weights` will make of a model, which may lie on the meta device.

    Args:
        device: where the run will compute; None for the processor.
    """
    kept, weights, masters, trained = _kept_in_fp32(model), 0, 0, 0
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            weights += parameter.nbytes
            continue
        stays = compute == torch.float32 or id(parameter) in kept or (autocast and parameter.requires_grad)
        width = 4 if stays else parameter.element_size() if autocast else compute.itemsize
        weights += parameter.numel() * width
        if parameter.requires_grad:
            trained += parameter.numel()
            masters += 0 if stays else parameter.numel() * 4
    head = getattr(getattr(model, "get_output_embeddings", lambda: None)(), "weight", None)
    learned = head.numel() if isinstance(head, nn.Parameter) and head.requires_grad else 0
    weights += sum(buffer.nbytes for buffer in model.buffers())
    return Held(weights, masters, trained, learned, _copied(model, compute, device or torch.device("cpu")))


def _copied(model: nn.Module, compute: torch.dtype, device: torch.device) -> int:
    """Bytes of the largest copy of a weight in fp32 that `ops.products` makes at once; 0 where torch has products."""
    if device.type != "cpu" or not kernels.torch_lacks(compute):
        return 0
    most = max((each.numel() for each in model.parameters() if each.dim() == 2), default=0)
    return min(most, PIECE) * torch.float32.itemsize


def _hand_over(copy: nn.Parameter, master: nn.Parameter) -> None:
    """Add a micro-batch's gradient to the sum in fp32."""
    assert copy.grad is not None
    if master.grad is None:
        master.grad = copy.grad.float()
    else:
        master.grad.add_(copy.grad)
    copy.grad = None


def _kept_in_fp32(model: nn.Module) -> set[int]:
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, RMSNorm | Router)
        for parameter in module.parameters(recurse=False)
    }


class LossScale:
    """The factor that keeps small gradients in fp16: doubled after a while, halved where gradients overflow.

    Args:
        part: a :class:`modelwright.configs.run.LossScalePart`; None scales by 1 for ever.
    """

    def __init__(self, part: Any = None):
        self.part, self.value, self.good = part, 1.0 if part is None else float(part.init), 0

    @property
    def may_fall(self) -> bool:
        """Whether gradients that are not finite may be the scale's fault."""
        return self.part is not None and not self.part.fixed and self.value > LEAST_SCALE

    def worked(self) -> None:
        """A step was taken with it."""
        self.good += 1
        if self.part is not None and not self.part.fixed and self.good % self.part.window == 0:
            self.value *= self.part.factor

    def overflowed(self) -> None:
        """A step was not."""
        self.good = 0
        self.value = max(self.value / self.part.factor, LEAST_SCALE)
