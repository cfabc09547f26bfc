"""Feed-forward layers: gated (SwiGLU, arXiv:2002.05202) and plain, with dropout after the activation and the output."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelwright.layers.bare import bare_activation
from modelwright.layers.joined import joined
from modelwright.layers.linear import column_linear, row_linear
from modelwright.layers.slots import Slot, own_tensors
from modelwright.ops.gated import Activation, gated_product
from modelwright.ops.invariant import row_wise

GATE_UP = ("gate_proj", "up_proj")


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``: ``[..., dim]`` to the same.

    ``fused`` stores gate and up as one matrix whose rows alternate, gate first (MindFormers' layout); on disk they stay
    apart (:meth:`slots`). ``slices`` and ``compute`` as in :mod:`modelwright.layers.linear`.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        act: Activation,
        dropout: float = 0.0,
        slices: int = 1,
        fused: bool = False,
        compute: torch.dtype | None = None,
    ):
        super().__init__()
        self.fused = fused
        if fused:
            self.gate_up_proj = column_linear(dim, 2 * hidden, slices=slices, compute=compute)
        else:
            self.gate_proj = column_linear(dim, hidden, slices=slices, compute=compute)
            self.up_proj = column_linear(dim, hidden, slices=slices, compute=compute)
        self.down_proj = row_linear(hidden, dim, slices=slices, compute=compute)
        self.act = act
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self._project(x)
        hidden = F.dropout(gated_product(gate, up, bare_activation(self.act)), self.dropout, self.training)
        return F.dropout(self.down_proj(hidden), self.dropout, self.training)

    def slots(self) -> dict[str, Slot]:
        """Where the official gate and up projections lie inside the fused one; empty when they are apart."""
        if not self.fused:
            return {}
        rows = {"runs": self.gate_up_proj.out_features // 2, "period": 2}
        return {
            f"{name}.{kind}": Slot(f"gate_up_proj.{kind}", i, i + 1, **rows)
            for i, name in enumerate(GATE_UP)
            for kind in own_tensors(self.gate_up_proj)  # the weight, or its parts where it is stored in integers
        }

    def _project(self, x: Tensor) -> Sequence[Tensor]:
        """Gate and up, ``[..., hidden]`` each."""
        if not self.fused:
            return joined(x, self.gate_proj, self.up_proj)
        return self.gate_up_proj(x).unflatten(-1, (-1, 2)).unbind(-1)


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
        hidden = F.dropout(row_wise(self.act, self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(hidden), self.dropout, self.training)
