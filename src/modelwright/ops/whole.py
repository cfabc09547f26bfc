"""Attention in which every token sees every other, as in a vision tower: torch's, and the compiled kernel's."""

from torch import Tensor

from modelwright.ops import kernels
from modelwright.ops.attention import fused_attention


def whole_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float = 0.0, causal: bool = False
) -> Tensor:
    """:func:`fused_attention`, by the kernel where there is no mask and nothing is dropped out."""
    if mask is None and not causal and not dropout and kernels.serves_prefill(q, k, v):
        return kernels.prefill(q, k, v, scale, causal=False)
    return fused_attention(q, k, v, mask, scale, dropout, causal)
