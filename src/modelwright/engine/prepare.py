"""A built model made fast for decoding on the CPU, from outside and until further notice; it stays the model it is.

The layers that ``ops/few_rows.py`` serves are computed by it. No weight is copied, and parameters, their names and the
modules themselves stay, so that saving, ``generate()`` and training go on as before. Leaves alone what is more than a
plain layer: adapted, quantised, sliced or hooked ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from modelwright.layers import Experts, GatedMLP, GroupedQueryAttention
from modelwright.layers.linear import CastLinear
from modelwright.ops import few_rows, kernels
from modelwright.ops.experts import GroupedProduct

_SILU = tuple(type(ACT2FN[name]) for name in ("silu", "swish"))


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` changed: attributes of modules that stand before those of their classes."""

    changes: tuple[tuple[nn.Module, str], ...]

    def undo(self) -> None:
        """Let the model compute as it was built to; once or several times."""
        for module, name in self.changes:
            module.__dict__.pop(name, None)


def prepare(model: nn.Module) -> Prepared:
    """Let ``model`` compute few rows by the compiled kernels; without kernels, or off the CPU, nothing changes.

    A model that is prepared already stays so, and only the first handle undoes it.
    """
    if not kernels.available():
        return Prepared(())
    changes = []
    for module in model.modules():
        for name, way in _ways(module):
            if name not in module.__dict__:
                module.__dict__[name] = way
                changes.append((module, name))
    return Prepared(tuple(changes))


def _ways(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The methods of ``module`` that are to be replaced, and by what."""
    if type(module) is nn.Linear:
        yield "forward", FewRowsLinear(module)
    elif type(module) is CastLinear:
        yield "forward", FewRowsCastLinear(module)
    elif type(module) is Experts:
        yield "forward", FewTokensExperts(module)
    elif type(module) is GroupedQueryAttention and not module.fused:
        yield "_project", JoinedProjections(module, ("q_proj", "k_proj", "v_proj"))
    elif type(module) is GatedMLP and not module.fused:
        yield "_project", JoinedProjections(module, ("gate_proj", "up_proj"))


@dataclass(frozen=True)
class FewRowsLinear:
    """The ``forward`` of a linear layer. An object, not a closure: a copy of the model gets one of its own."""

    layer: nn.Linear

    def __call__(self, input: Tensor) -> Tensor:
        layer = self.layer
        if type(layer.weight) is not nn.Parameter:  # quantised since: a tensor that computes in its own way
            return nn.Linear.forward(layer, input)
        return few_rows.linear(input, layer.weight, layer.bias)


@dataclass(frozen=True)
class FewRowsCastLinear:
    """The ``forward`` of a layer that computes in a type of its own, where that is its weight's too."""

    layer: CastLinear

    def __call__(self, input: Tensor) -> Tensor:
        layer = self.layer
        if type(layer.weight) is not nn.Parameter or layer.weight.dtype != layer.compute:
            return CastLinear.forward(layer, input)
        return few_rows.linear(*layer.operands(input))


@dataclass(frozen=True)
class FewTokensExperts:
    """The ``forward`` of stacked experts."""

    experts: Experts

    def __call__(self, x: Tensor, weights: Tensor, chosen: Tensor, product: GroupedProduct | None = None) -> Tensor:
        own = self.experts
        w_in, w_out = own.gate_up_proj, own.down_proj
        if product is not None or not self._serves(w_in, w_out):
            return Experts.forward(own, x, weights, chosen, product)
        return few_rows.silu_experts(x.to(w_in.dtype), chosen, weights, w_in, w_out)

    def _serves(self, *stacks: Tensor) -> bool:
        own = self.experts
        plain = all(type(stack) is nn.Parameter and own.compute in (None, stack.dtype) for stack in stacks)
        return plain and own.gated and isinstance(own.act, _SILU) and not (own.training and own.dropout)


@dataclass(frozen=True)
class JoinedProjections:
    """The ``_project`` of a module whose projections read the same input: one call instead of several."""

    module: nn.Module
    names: tuple[str, ...]

    def __call__(self, x: Tensor) -> list[Tensor]:
        layers = [getattr(self.module, name) for name in self.names]
        if not all(map(_is_plain, layers)):
            return [layer(x) for layer in layers]
        return few_rows.linears(x, [(layer.weight, layer.bias) for layer in layers])


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is its weight and bias alone; asked in each pass, since adapters and hooks come and go."""
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter:
        return False
    own = type(layer.__dict__.get("forward")) in (FewRowsLinear, type(None))
    return own and not (layer._forward_hooks or layer._forward_pre_hooks)
