"""Scaled dot-product attention with grouped heads: the explicit product and torch's fused kernel, equal in result.

Shapes everywhere: q ``[batch, heads, tokens, k_dim]``, k ``[batch, kv_heads, past + tokens, k_dim]``,
v ``[batch, kv_heads, past + tokens, v_dim]``, result ``[batch, heads, tokens, v_dim]``. Boolean masks are True where a
query may look; floating masks are added to the scores.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.dispatch import numbers_are_known, only_numbers
from modelwright.ops.products import as_autocast, in_fp32, matmul
from modelwright.ops.trained_attention import is_trained_here, trained_attention, wants_gradients


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float = 0.0,
    causal: bool = False,
    softmax_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Softmax in ``softmax_dtype`` over the written-out scores. The documentation of :func:`fused_attention`."""
    if causal:
        mask = causal_mask(q.shape[2], k.shape[2], past=0, device=q.device)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = masked_scores(matmul(q, k.transpose(-1, -2)) * scale, mask, softmax_dtype)
    weights = F.dropout(scores.softmax(dim=-1).to(q.dtype), dropout)
    return matmul(weights, v)


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float = 0.0, causal: bool = False
) -> Tensor:
    """torch's scaled dot-product attention; ``causal`` replaces a square lower-triangular ``mask`` and needs no tensor.

    A query that may look at nothing is left to torch's kernel, which gives zeros or NaN: masks should not have any.
    """
    if not dropout and is_trained_here(q, k, v, mask):
        return trained_attention(q, k, v, mask, scale, causal)
    if wants_gradients(q, k, v) and in_fp32(q, k, v):
        return _torchs_in_fp32(q, k, v, mask, scale, dropout, causal)
    return _torchs(q, k, v, mask, scale, dropout, causal)


def _torchs(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float, causal: bool) -> Tensor:
    grouped = bool(q.shape[1] != k.shape[1])  # lengths are tensors while torch.jit traces
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _torchs_in_fp32(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float, causal: bool
) -> Tensor:
    """What torch writes out in fp32 itself, unless autocast is enabled: scores and weights are kept so."""
    q, k, v = as_autocast(q), as_autocast(k), as_autocast(v)
    mask = mask.float() if mask is not None and mask.is_floating_point() else mask
    with torch.autocast("cpu", enabled=False):
        return _torchs(q.float(), k.float(), v.float(), mask, scale, dropout, causal).to(v.dtype)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float = 0.0, causal: bool = False
) -> Tensor:
    """:func:`fused_attention`, by the compiled kernel where it serves: without a mask, every token or the causal ones.

    torch's tiled CPU kernel takes values as wide as keys only; the product it falls back to otherwise writes out all
    scores (at 2048 tokens and widths 192 and 128 in 2.6 times the time), so there the values are padded, also where
    gradients are wanted.
    """
    if dropout or not numbers_are_known(q):
        return fused_attention(q, k, v, mask, scale, dropout, causal)
    if mask is None and only_numbers(q, k, v) and kernels.serves_prefill(q, k, v):
        return kernels.prefill(q, k, v, scale, causal=causal)
    if is_trained_here(q, k, v, mask):
        return trained_attention(q, k, v, mask, scale, causal)
    return fused_attention(q, k, as_wide_as_keys(v, k), mask, scale, causal=causal)[..., : v.shape[-1]]


def as_wide_as_keys(v: Tensor, k: Tensor) -> Tensor:
    """Values for torch's fused kernel: padded on a CPU, whose kernel wants them so; those of GPUs take any width."""
    short = k.shape[-1] - v.shape[-1] if k.is_cpu else 0
    return F.pad(v, (0, short)) if short > 0 else v


def upcast_attention(
    product: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float = 0.0,
    causal: bool = False,
) -> Tensor:
    """Either of the two in fp32, with autocast off and the queries scaled first; the result has the type of ``v``.

    Half precision then neither rounds nor overflows scores (Shoeybi et al., arXiv:1909.08053, scale keys likewise).
    """
    with torch.autocast(q.device.type, enabled=False):
        out = product(q.float() * scale, k.float(), v.float(), mask, 1.0, dropout, causal)
    return out.to(v.dtype)


def masked_scores(scores: Tensor, mask: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scores in ``dtype`` with the mask applied. A query that may look at nothing gets even weights, never NaN."""
    scores = scores.to(dtype)
    lowest = torch.finfo(dtype).min
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, lowest)
    return (scores + mask).to(dtype).clamp(min=lowest)


def causal_mask(tokens: int, keys: int, past: int | Tensor, device: torch.device) -> Tensor:
    """``[tokens, keys]``: query t stands at position ``past + t`` and sees the keys up to and including its own."""
    own = torch.arange(tokens, device=device) + past
    return torch.arange(keys, device=device)[None, :] <= own[:, None]
