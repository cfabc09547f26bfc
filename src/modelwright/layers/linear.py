"""Linear layers computed in slices, as tensor-parallel pretraining computed them; one slice is a plain ``nn.Linear``.

The numbers differ from the plain layer only in the order of additions and the kernel's rounding: that is the point.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ColumnSlicedLinear(nn.Linear):
    """The output width computed in ``slices`` parts and concatenated."""

    def __init__(self, in_features: int, out_features: int, bias: bool, slices: int):
        super().__init__(in_features, out_features, bias)
        self.slices = slices

    def forward(self, input: Tensor) -> Tensor:
        parts = [F.linear(input, rows) for rows in self.weight.chunk(self.slices, dim=0)]
        joined = torch.cat(parts, dim=-1)
        return joined if self.bias is None else joined + self.bias


class RowSlicedLinear(nn.Linear):
    """The input width split into ``slices`` parts whose products are summed."""

    def __init__(self, in_features: int, out_features: int, bias: bool, slices: int):
        super().__init__(in_features, out_features, bias)
        self.slices = slices

    def forward(self, input: Tensor) -> Tensor:
        pairs = zip(input.chunk(self.slices, dim=-1), self.weight.chunk(self.slices, dim=1), strict=True)
        summed = reduce(torch.add, (F.linear(part, columns) for part, columns in pairs))
        return summed if self.bias is None else summed + self.bias


def column_linear(in_features: int, out_features: int, bias: bool = False, slices: int = 1) -> nn.Linear:
    """A linear layer whose output width may be sliced (``pretraining_tp`` of q, k, v, gate, up and head)."""
    if slices == 1:
        return nn.Linear(in_features, out_features, bias)
    return ColumnSlicedLinear(in_features, out_features, bias, slices)


def row_linear(in_features: int, out_features: int, bias: bool = False, slices: int = 1) -> nn.Linear:
    """A linear layer whose input width may be sliced (``pretraining_tp`` of the output and down projections)."""
    if slices == 1:
        return nn.Linear(in_features, out_features, bias)
    return RowSlicedLinear(in_features, out_features, bias, slices)
