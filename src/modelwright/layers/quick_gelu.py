"""The sigmoid approximation of GELU as a module."""

from torch import Tensor, nn

from modelwright.ops.quick_gelu import quick_gelu


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 * x)``."""

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)
