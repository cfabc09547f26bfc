"""Linear layers: plain, in slices as tensor-parallel pretraining computed them, or in a type of their own.

The numbers of slices differ from the plain layer's only in the order of additions and the kernel's rounding: that is
the point. ``compute`` is the type of the product where it is not the weight's; the result has it too. With neither, the
layer is a plain one that follows its weight.
"""

from functools import reduce

import torch
from torch import Tensor, nn

from modelwright.ops.invariant import rows_are_invariant
from modelwright.ops.linear import linear
from modelwright.ops.products import plain_linear


class Linear(nn.Linear):
    """torch's layer, computed by whatever :func:`modelwright.ops.linear.linear` finds the fastest."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class CastLinear(nn.Linear):
    """Input, weight and bias cast to ``compute`` for the product; ``slices`` is for the layers below."""

    def __init__(self, in_features: int, out_features: int, bias: bool, slices: int, compute: torch.dtype | None):
        super().__init__(in_features, out_features, bias)
        self.slices, self.compute = slices, compute

    def forward(self, input: Tensor) -> Tensor:
        return linear(*self.operands(input))

    def operands(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight and bias in the product's type."""
        if self.compute is None:
            return input, self.weight, self.bias
        bias = None if self.bias is None else self.bias.to(self.compute)
        return input.to(self.compute), self.weight.to(self.compute), bias


class ColumnSlicedLinear(CastLinear):
    """The output width computed in ``slices`` parts and concatenated."""

    def forward(self, input: Tensor) -> Tensor:
        input, weight, bias = self.operands(input)
        joined = torch.cat([_product(input, rows) for rows in weight.chunk(self.slices, dim=0)], dim=-1)
        return joined if bias is None else joined + bias


class RowSlicedLinear(CastLinear):
    """The input width split into ``slices`` parts whose products are summed."""

    def forward(self, input: Tensor) -> Tensor:
        input, weight, bias = self.operands(input)
        pairs = zip(input.chunk(self.slices, dim=-1), weight.chunk(self.slices, dim=1), strict=True)
        summed = reduce(torch.add, (_product(part, columns) for part, columns in pairs))
        return summed if bias is None else summed + bias


def _product(input: Tensor, weight: Tensor) -> Tensor:
    """torch's product, as transformers takes it of slices, unless no row may depend on the others."""
    return linear(input, weight) if rows_are_invariant() else plain_linear(input, weight)


def column_linear(
    in_features: int, out_features: int, bias: bool = False, slices: int = 1, compute: torch.dtype | None = None
) -> nn.Linear:
    """A linear layer whose output width may be sliced (``pretraining_tp`` of q, k, v, gate, up and head)."""
    return _linear(ColumnSlicedLinear, in_features, out_features, bias, slices, compute)


def row_linear(
    in_features: int, out_features: int, bias: bool = False, slices: int = 1, compute: torch.dtype | None = None
) -> nn.Linear:
    """A linear layer whose input width may be sliced (``pretraining_tp`` of the output and down projections)."""
    return _linear(RowSlicedLinear, in_features, out_features, bias, slices, compute)


def _linear(
    sliced: type[CastLinear], in_features: int, out_features: int, bias: bool, slices: int, compute: torch.dtype | None
) -> nn.Linear:
    if slices > 1:
        return sliced(in_features, out_features, bias, slices, compute)
    if compute is not None:
        return CastLinear(in_features, out_features, bias, slices, compute)
    return Linear(in_features, out_features, bias)
