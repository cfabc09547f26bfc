"""Layers that hold their weights as whole numbers and scales: a linear layer, and the stacked experts.

Rounding and arithmetic are in ``ops``; which layers of a model become these is the business of ``models``. Gradients
reach their inputs and biases, and never the stored numbers: those train under LoRA alone (``lora.py``).
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from modelwright.layers.bare import bare_activation
from modelwright.layers.slots import Slot
from modelwright.ops.gated import Activation
from modelwright.ops.stored import Stored, inputs_of, stored_experts, stored_linear
from modelwright.ops.weight_only import Int4Weight, Int8Weight


class QuantizedLinear(nn.Module):
    """``[..., in]`` to ``[..., out]`` with a stored weight.

    On disk ``weight`` is int8 ``[out, in]``, or uint8 ``[out, in / 2]`` with two int4 steps to a byte, and
    ``weight_scale`` (and ``weight_offset``) what goes with it; see ``ops/weight_only.py``. Scales keep their type when
    the layer is moved to another one.

    Args:
        compute: the type that inputs are cast to; None leaves them.
        dynamic: round the inputs to int8 too, row by row; the weight must be int8.
    """

    def __init__(
        self, stored: Stored, bias: nn.Parameter | None, compute: torch.dtype | None = None, dynamic: bool = False
    ):
        super().__init__()
        _keep(self, "weight", stored)
        self.bias = bias
        self.compute, self.dynamic = compute, dynamic

    @property
    def stored(self) -> Stored:
        """The weight as the operations take it."""
        return _kept(self, "weight")

    @property
    def in_features(self) -> int:
        return inputs_of(self.stored)

    @property
    def out_features(self) -> int:
        return self.stored.steps.shape[0]

    def forward(self, input: Tensor) -> Tensor:
        input = input if self.compute is None else input.to(self.compute)
        return stored_linear(input, self.stored, self.bias, self.dynamic)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        return super()._apply(_but_for_types(self, fn), recurse)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {_describe(self.stored)}, dynamic={self.dynamic}"


class QuantizedExperts(nn.Module):
    """:class:`modelwright.layers.Experts` with stored stacks, each row of each expert rounded on its own.

    ``gate_up_proj`` and ``down_proj`` hold the steps, ``gate_up_proj_scale`` and so on what goes with them. On disk
    each expert keeps its official names, ``N.gate_proj.weight`` and ``N.gate_proj.weight_scale`` (:meth:`slots`).
    """

    gate_up_proj: Tensor
    down_proj: Tensor

    def __init__(
        self,
        gate_up: Stored,
        down: Stored,
        act: Activation,
        gated: bool,
        names: tuple[str, str, str],
        dropout: float = 0.0,
        compute: torch.dtype | None = None,
        dynamic: bool = False,
    ):
        super().__init__()
        _keep(self, "gate_up_proj", gate_up)
        _keep(self, "down_proj", down)
        self.act, self.gated, self.names, self.dropout = act, gated, names, dropout
        self.compute, self.dynamic = compute, dynamic

    @property
    def stored(self) -> tuple[Stored, Stored]:
        """The two stacks as the operations take them."""
        return _kept(self, "gate_up_proj"), _kept(self, "down_proj")

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """``[tokens, dim]`` to the weighted sum of each token's chosen experts, ``[tokens, dim]``."""
        x = x if self.compute is None else x.to(self.compute)
        into, out = self.stored
        dropout = self.dropout if self.training else 0.0
        act = bare_activation(self.act)
        return stored_experts(x, chosen, weights, into, out, act, self.gated, dropout, self.dynamic)

    def slots(self) -> dict[str, Slot]:
        """Where each expert's official tensors lie in the stacks."""
        gate, up, down = self.names
        experts, rows = self.gate_up_proj.shape[:2]
        parts = [gate, up] if self.gated else [up]
        width = rows // len(parts)
        kinds = [name.removeprefix("down_proj") for name in self.state_dict() if name.startswith("down_proj")]
        dim = self.down_proj.shape[1]
        table = {}
        for e, kind in product(range(experts), kinds):  # kinds: "", "_scale" and perhaps "_offset"
            for i, part in enumerate(parts):
                slot = Slot(f"gate_up_proj{kind}", i * width, (i + 1) * width, item=e)
                table[f"{e}.{part}.weight{kind}"] = slot
            table[f"{e}.{down}.weight{kind}"] = Slot(f"down_proj{kind}", 0, dim, item=e)
        return table

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        return super()._apply(_but_for_types(self, fn), recurse)


def _keep(module: nn.Module, name: str, stored: Stored) -> None:
    module.register_buffer(name, stored.steps)
    module.register_buffer(f"{name}_scale", stored.scales)
    if isinstance(stored, Int4Weight):
        module.register_buffer(f"{name}_offset", stored.offsets)


def _kept(module: Any, name: str) -> Stored:
    steps, scales = getattr(module, name), getattr(module, f"{name}_scale")
    if steps.dtype == torch.int8:
        return Int8Weight(steps, scales)
    return Int4Weight(steps, scales, getattr(module, f"{name}_offset"))


def _but_for_types(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``fn``, which moves tensors to a device or type, with the stored numbers and scales passed to it as bytes."""
    stored = {id(buffer) for buffer in module.buffers(recurse=False)}

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in stored or not tensor.is_floating_point():
            return fn(tensor)
        return fn(tensor.view(torch.uint8)).view(tensor.dtype)

    return moved


def _describe(stored: Stored) -> str:
    return "int8" if isinstance(stored, Int8Weight) else f"int4 in groups of {stored.group}"
