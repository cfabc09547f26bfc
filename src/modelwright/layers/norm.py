"""Root-mean-square norm (arXiv:1910.07467), computed in fp32 whatever the input."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """``weight * x / rms(x)`` over the last dimension; as in the official code only the root mean square is in fp32.

    The result has the input's dtype, under autocast too.
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (self.weight * normed.to(x.dtype)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"
