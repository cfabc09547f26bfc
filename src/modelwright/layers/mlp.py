"""Feed-forward layers: gated (SwiGLU, arXiv:2002.05202) and plain, with dropout after the activation and the output."""

import torch.nn.functional as F
from torch import Tensor, nn

from modelwright.layers.linear import column_linear, row_linear
from modelwright.ops.experts import Activation


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``: ``[..., dim]`` to the same; ``slices`` as in :mod:`modelwright.layers.linear`."""

    def __init__(self, dim: int, hidden: int, act: Activation, dropout: float = 0.0, slices: int = 1):
        super().__init__()
        self.gate_proj = column_linear(dim, hidden, slices=slices)
        self.up_proj = column_linear(dim, hidden, slices=slices)
        self.down_proj = row_linear(hidden, dim, slices=slices)
        self.act = act
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.act(self.gate_proj(x)) * self.up_proj(x), self.dropout, self.training)
        return F.dropout(self.down_proj(hidden), self.dropout, self.training)


class PlainMLP(nn.Module):
    """``fc2(act(fc1(x)))``: ``[..., dim]`` to the same; ``bias`` is that of both layers."""

    def __init__(
        self, dim: int, hidden: int, act: Activation, dropout: float = 0.0, bias: bool = False, slices: int = 1
    ):
        super().__init__()
        self.fc1 = column_linear(dim, hidden, bias, slices)
        self.fc2 = row_linear(hidden, dim, bias, slices)
        self.act = act
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.act(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(hidden), self.dropout, self.training)
