"""Root-mean-square norm (arXiv:1910.07467) in a type of its own, whatever the input's, in either of two orders."""

import torch
from torch import Tensor, nn

from modelwright.ops.norm import rms_norm


class RMSNorm(nn.Module):
    """``weight * x / rms(x)`` over the last dimension; the result has the input's dtype, under autocast too.

    Args:
        compute: the type in which ``x / rms(x)`` is taken.
        fused: multiply by the weight in that type too, by torch's kernel; otherwise round to the input's type first, as
            the official Llama and DeepSeek code does. In fp32 the two are the same.
    """

    def __init__(self, dim: int, eps: float = 1e-6, fused: bool = False, compute: torch.dtype = torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps, self.fused, self.compute = eps, fused, compute

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, self.fused, self.compute)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"
