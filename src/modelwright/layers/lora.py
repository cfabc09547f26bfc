"""LoRA (arXiv:2106.09685): layers and stacked experts that add ``scale * B @ A`` to weights that stay as they are.

The product ``B @ A``, as large as the weight, is never built: the input passes A and then B, an expert's rows those of
its expert. An adapted layer stands in the place of its plain one, and its weights keep their names: those of the pair
beside ``weight`` are ``lora.weight.A`` and ``lora.weight.B``.
"""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelwright.layers.bare import bare_activation
from modelwright.layers.moe import Experts
from modelwright.layers.quantized import QuantizedExperts
from modelwright.ops.experts import GroupedProduct, experts, grouped_linear
from modelwright.ops.invariant import rows_are_invariant
from modelwright.ops.linear import linear
from modelwright.ops.products import addmm, plain_linear
from modelwright.ops.stored import stored_experts

STACKS = ("gate_up_proj", "down_proj")
"""The weights of stacked experts."""


class LowRank(nn.Module):
    """A pair beside one weight: A ``[rank, in]`` and B ``[out, rank]``, or stacks of them ``[experts, ...]``.

    Args:
        a, b: the two; they are computed with in the type of what they are added to.
        scale: of the product, ``alpha / rank`` or ``alpha / sqrt(rank)``.
        dropout: of what enters A, in training.
        rslora: whether the scale is the latter, for those who save it.
    """

    def __init__(self, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0, rslora: bool = False):
        super().__init__()
        self.A, self.B = nn.Parameter(a), nn.Parameter(b)
        self.scale, self.dropout, self.rslora = scale, dropout, rslora

    @property
    def rank(self) -> int:
        """Rows of A, of one expert where there are several."""
        return self.A.shape[-2]

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        """``base + scale * x @ A.T @ B.T``: x ``[..., in]``, base ``[..., out]``."""
        a, b = self.A.to(base.dtype), self.B.to(base.dtype)
        x = F.dropout(x, self.dropout, self.training).to(base.dtype)
        if rows_are_invariant():
            return base + self.scale * linear(linear(x, a), b)
        hidden = plain_linear(x, a).flatten(0, -2)
        return addmm(base.flatten(0, -2), hidden, b.t(), alpha=self.scale).view_as(base)

    def grouped(self, x: Tensor, base: Tensor, counts: Tensor, product: GroupedProduct = grouped_linear) -> Tensor:
        """The same for rows sorted by expert; ``counts`` ``[experts]`` says how many each has."""
        x = F.dropout(x, self.dropout, self.training).to(base.dtype)
        hidden = self.scale * product(x, self.A.to(base.dtype), counts)
        return product(hidden, self.B.to(base.dtype), counts).add_(base)  # in place: nobody else holds the product

    def joined(self, other: "LowRank") -> "LowRank":
        """One pair that adds what both add; for no further training."""
        ours, theirs = self.B * self.scale, other.B * other.scale
        return LowRank(torch.cat([self.A, other.A], dim=-2), torch.cat([ours, theirs], dim=-1), 1.0)

    def delta(self) -> Tensor:
        """``scale * B @ A`` in fp32, of the weight's shape ``[out, in]`` or ``[experts, out, in]``."""
        return self.scale * (self.B.detach().float() @ self.A.detach().float())

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}"


class Adapted(nn.Module):
    """What layers with pairs beside their weights share.

    Args:
        plain: the layer in whose place this one stands; its tensors are taken over, names and all.
        pairs: by the names of the weights that they are beside.
    """

    lora: nn.ModuleDict

    def __init__(self, plain: nn.Module, pairs: Mapping[str, LowRank]):
        self.__dict__.update(plain.__dict__)
        self._modules = {**self._modules, "lora": nn.ModuleDict(dict(pairs))}

    def pair(self, name: str) -> LowRank | None:
        """The pair beside the weight of this name."""
        return dict(self.lora.items()).get(name)  # pyright: ignore[reportReturnType]

    def plain(self) -> nn.Module:
        """The layer without its pairs, with the same tensors."""
        made = _plain_class(type(self)).__new__(_plain_class(type(self)))
        made.__dict__.update(self.__dict__)
        made._parameters, made._buffers = dict(self._parameters), dict(self._buffers)
        made._modules = {name: module for name, module in self._modules.items() if name != "lora"}
        return made


class AdaptedLinear(Adapted):
    """A linear layer of any kind with a pair beside its ``weight``."""

    def forward(self, x: Tensor) -> Tensor:
        base = super().forward(x)  # pyright: ignore[reportAttributeAccessIssue] (the plain class is named beside this)
        return self.lora["weight"](x, base)


class AdaptedExperts(Adapted):
    """:class:`Experts` with pairs beside ``gate_up_proj``, ``down_proj`` or both."""

    def forward(self: Any, x: Tensor, weights: Tensor, chosen: Tensor, product: GroupedProduct | None = None) -> Tensor:
        """As there."""
        x, w_in, w_out = (
            tensor if self.compute is None else tensor.to(self.compute)
            for tensor in (x, self.gate_up_proj, self.down_proj)
        )
        beside = partial(self._multiply, plain=product or grouped_linear, into=w_in)
        dropout = self.dropout if self.training else 0.0
        return experts(x, chosen, weights, w_in, w_out, bare_activation(self.act), self.gated, dropout, beside)

    def _multiply(self, rows: Tensor, weight: Tensor, counts: Tensor, plain: GroupedProduct, into: Tensor) -> Tensor:
        base = plain(rows, weight, counts)
        pair = self.pair(STACKS[0] if weight is into else STACKS[1])
        return base if pair is None else pair.grouped(rows, base, counts)


class AdaptedQuantizedExperts(Adapted):
    """:class:`QuantizedExperts` with pairs beside ``gate_up_proj``, ``down_proj`` or both."""

    def forward(self: Any, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """As there."""
        x = x if self.compute is None else x.to(self.compute)
        dropout = self.dropout if self.training else 0.0
        into, out = (None if pair is None else pair.grouped for pair in map(self.pair, STACKS))
        act = bare_activation(self.act)
        w_in, w_out = self.stored
        beside = (into, out)
        return stored_experts(x, chosen, weights, w_in, w_out, act, self.gated, dropout, self.dynamic, beside)


def adapted(plain: nn.Module, pairs: Mapping[str, LowRank]) -> Adapted:
    """What stands in the place of ``plain``: a linear layer (the pair of ``weight``) or stacked experts."""
    made = _adapted_class(type(plain))(plain, pairs)
    return made.train(plain.training)


def put_beside(model: nn.Module, pairs: Mapping[str, LowRank]) -> None:
    """Put adapted layers, with these pairs beside their weights, in the place of plain ones.

    A pair whose weight has one already is added to it.
    """
    by_module: dict[str, dict[str, LowRank]] = {}
    for name, pair in pairs.items():
        module, _, weight = name.rpartition(".")
        by_module.setdefault(module, {})[weight] = pair
    for name, own in by_module.items():
        module = model.get_submodule(name)
        if isinstance(module, Adapted):
            before: dict[str, Any] = dict(module.lora.items())
            shared = {weight: before[weight].joined(own[weight]) for weight in before.keys() & own.keys()}
            module, own = module.plain(), before | own | shared
        replace_module(model, name, adapted(module, own))


def lora_of(model: nn.Module) -> dict[str, LowRank]:
    """The pairs that a model has, by the weights that they are beside."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Adapted):
            found |= {f"{name}.{weight}": pair for weight, pair in module.lora.items()}
    return found


def replace_module(model: nn.Module, name: str, made: nn.Module) -> None:
    """Put a module in the place of the one of this name."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, made)


@cache
def _adapted_class(plain: type) -> Any:
    if issubclass(plain, QuantizedExperts):
        kind: type[Adapted] = AdaptedQuantizedExperts
    else:
        kind = AdaptedExperts if issubclass(plain, Experts) else AdaptedLinear
    return type(f"Adapted{plain.__name__}", (kind, plain), {"__module__": __name__})


def _plain_class(kind: type[Adapted]) -> Any:
    return kind.__bases__[1]
