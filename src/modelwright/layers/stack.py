"""Running a stack of decoder layers, or the part of it that a stage of a pipeline holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelwright.layers.balance import accumulate_load
from modelwright.layers.moe import Routing


@dataclass(frozen=True)
class StackOutput:
    """What layers make of ``x``.

    Attributes:
        x: the last layer's output, of the input's shape, or of the wanted tokens.
        inputs: what each layer was given, where that was to be kept.
        routings: what each router decided, by layer.
    """

    x: Tensor
    inputs: tuple[Tensor, ...]
    routings: tuple[Routing, ...]


def run_stack(
    layers: Iterable[nn.Module | None], x: Tensor, *around: Any, keep: bool = False, only: Tensor | None = None
) -> StackOutput:
    """Run ``x`` through each layer in turn.

    A layer returns ``x``, or ``x`` and then the tensors of its :class:`Routing`: bare ones, so that gradients of the
    balance losses pass through either kind of gradient checkpointing. In training a router's load is counted here, once
    per pass, because a recomputed layer runs twice. A pass without gradients, such as those of ``generate()``, trains
    nothing and counts nothing.

    Args:
        layers: in order; None stands for a layer that another stage of the pipeline holds.
        around: what every layer is given besides ``x``, such as the rotation and the attention backend.
        keep: whether to keep each layer's input.
        only: the indices of the only tokens that are wanted of the last layer, which is asked for no others; all by
            default.
    """
    inputs, routings = [], []
    held = [layer for layer in layers if layer is not None]
    for number, layer in enumerate(held, 1):
        if keep:
            inputs.append(x)
        made = layer(x, *around) if only is None or number < len(held) else layer(x, *around, only=only)
        x, *routed = made if isinstance(made, tuple) else (made,)
        if routed:
            routings.append(Routing(*routed))
            if layer.training and torch.is_grad_enabled():
                accumulate_load(layer, routings[-1])
    return StackOutput(x, tuple(inputs), tuple(routings))


def wanted(x: Tensor, only: Tensor | None) -> Tensor:
    """The tokens of ``x`` ``[batch, tokens, dim]`` at these indices, or all: what a last layer goes on with."""
    return x if only is None else x[:, only]
