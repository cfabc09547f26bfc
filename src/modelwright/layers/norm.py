"""Root-mean-square norm (arXiv:1910.07467) in a type of its own, whatever the input's, in either of two orders."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        wide = x.to(self.compute)
        if self.fused:
            return F.rms_norm(wide, self.weight.shape, self.weight.to(self.compute), self.eps).to(x.dtype)
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (self.weight * normed.to(x.dtype)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"
