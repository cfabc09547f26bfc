"""A built model made fast for decoding on the CPU, from outside and until further notice; it stays the model it is.

Layers on few rows are computed by ``ops/few_rows.py``, norms and rotations in one pass each. No weight is copied, and
parameters, their names and the modules themselves stay, so that saving, ``generate()`` and training go on as before.
Leaves alone what is more than a plain layer: adapted, quantised, sliced or hooked ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from modelwright.attention import AttentionBackend, DenseAttention
from modelwright.layers import (
    Experts,
    FusedSelfAttention,
    GatedMLP,
    GroupedQueryAttention,
    RMSNorm,
    RotaryEmbedding,
    Rotation,
    Router,
)
from modelwright.layers.linear import CastLinear
from modelwright.ops import few_rows
from modelwright.ops.attention import whole_attention
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends import triton as gpu_kernels
from modelwright.ops.experts import GroupedProduct
from modelwright.ops.rotary import rotate_interleaved

Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]
_SILU = tuple(type(ACT2FN[name]) for name in ("silu", "swish"))
_TABLES = (torch.float32, torch.bfloat16)
_FEW_TO_SCORE = 64
"""Up to so many tokens the scores of experts take longer to begin than to compute."""


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` changed: attributes of modules that stand before those of their classes."""

    changes: tuple[tuple[nn.Module, str], ...]

    def undo(self) -> None:
        """Let the model compute as it was built to; once or several times."""
        for module, name in self.changes:
            module.__dict__.pop(name, None)


def prepare(model: nn.Module) -> Prepared:
    """Let ``model`` compute by kernels where they are faster, on a GPU its experts alone; without any nothing changes.

    A model that is prepared already stays so, and only the first handle undoes it.
    """
    if not (kernels.available() or gpu_kernels.available()):
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
    elif type(module) is RMSNorm and module.compute == torch.float32:
        yield "forward", NormInOnePass(module)
    elif type(module) is RotaryEmbedding:
        yield "forward", RotaryInOnePass(module)
    elif type(module) is Experts:
        yield "forward", FewTokensExperts(module)
    elif type(module) is GroupedQueryAttention and not module.fused:
        yield "_project", JoinedProjections(module, ("q_proj", "k_proj", "v_proj"))
    elif type(module) is FusedSelfAttention:
        yield "forward", WholeInBlocks(module)
    elif type(module) is Router and module.compute == torch.float32:
        yield "_scores", ScoresInOnePass(module)
    elif type(module) is GatedMLP:
        if isinstance(module.act, _SILU):
            yield "forward", GatedInOnePass(module)
        if not module.fused:
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
class NormInOnePass:
    """The ``forward`` of a norm in fp32."""

    norm: RMSNorm

    def __call__(self, x: Tensor) -> Tensor:
        norm = self.norm
        if norm.weight.dtype != x.dtype or not kernels.serves_rows(x, norm.weight):
            return RMSNorm.forward(norm, x)
        return kernels.rms_norm(x, norm.weight, norm.eps, norm.fused)


@dataclass(frozen=True)
class RotaryInOnePass:
    """The ``forward`` of a rotary embedding: the same angles, turned by :func:`rotate`."""

    rotary: RotaryEmbedding

    def __call__(self, positions: Tensor) -> Rotation:
        rotation = RotaryEmbedding.forward(self.rotary, positions)
        return replace(rotation, rotate=partial(rotate, rotation.rotate))


def rotate(otherwise: Rotate, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``otherwise``, one of ``ops/rotary.py``, in one pass where the kernel takes it: one row."""
    if x.shape[0] != 1 or cos.shape[0] != 1 or cos.dtype not in _TABLES or not kernels.serves_rows(x, cos, sin):
        return otherwise(x, cos, sin)
    return kernels.rotate(x, cos, sin, otherwise is rotate_interleaved)


@dataclass(frozen=True)
class WholeInBlocks:
    """The ``forward`` of a vision tower's attention; other backends than the dense one are handed on."""

    attention: FusedSelfAttention

    def __call__(self, x: Tensor, attention: AttentionBackend) -> Tensor:
        backend = attention.by(whole_attention) if type(attention) is DenseAttention else attention
        return FusedSelfAttention.forward(self.attention, x, backend)


@dataclass(frozen=True)
class ScoresInOnePass:
    """The ``_scores`` of a router that multiplies in fp32, for few tokens."""

    router: Router

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        router, weight = self.router, self.router.weight
        serves = len(x) <= _FEW_TO_SCORE and weight.dtype in _TABLES and x.is_contiguous()
        if not serves or not kernels.serves_rows(x, weight):
            return Router._scores(router, x)
        return kernels.route(x, weight, router.scoring == "softmax")


@dataclass(frozen=True)
class GatedInOnePass:
    """The ``forward`` of a gated feed-forward with SiLU that drops nothing out."""

    mlp: GatedMLP

    def __call__(self, x: Tensor) -> Tensor:
        mlp = self.mlp
        if mlp.training and mlp.dropout:
            return GatedMLP.forward(mlp, x)
        gate, up = mlp._project(x)
        serves = gate.is_contiguous() and gate.dtype == up.dtype and kernels.serves_rows(gate, up)
        return mlp.down_proj(kernels.silu_product(gate, up) if serves else mlp.act(gate) * up)


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
