"""Attention over DeepSeek-V2's latent cache (arXiv:2405.04434, section 2.1): expanding it, or absorbing the projection.

What is cached per token is one latent vector (``rank`` numbers) and one rotated key shared by all heads (``rope``
numbers). ``kv_b`` ``[heads * (nope + v_dim), rank]`` turns a latent into each head's key and value; its rows are
``[nope | v]`` head by head. *Expanding* applies it to every cached token. *Absorbing* moves it to the other side of the
products: the query is projected into the latent space, attends there, and the attended latent is projected out.
Both give the same numbers; only the amount of work differs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.ops.attention import fused_attention, masked_scores
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.dispatch import only_numbers
from modelwright.ops.invariant import rows_are_invariant
from modelwright.ops.products import in_fp32, matmul

Product = Callable[..., Tensor]
"""``fused_attention`` or ``reference_attention``: one signature, one result."""

INVARIANT_TOKENS = 7
"""Tokens that the compiled kernels take one by one whatever their number: from 8 on they turn rows of ``kv_b``."""


def prefers_absorbing(tokens: int, keys: int, nope: int, v_dim: int, rank: int) -> bool:
    """The rule that picks a path for ``tokens`` queries over ``keys`` cached tokens: whichever multiplies less.

    Per head, expanding costs ``keys * rank * (nope + v_dim)`` to rebuild keys and values and
    ``tokens * keys * (nope + v_dim)`` to attend; absorbing costs ``tokens * rank * (nope + v_dim)`` to move the query
    in and the output out, and ``tokens * keys * 2 * rank`` to attend. The rotated part costs both the same. Without a
    past (training, a whole prefill) every key is new, and expanding lets the fused kernel run.
    """
    expanding = keys * rank * (nope + v_dim) + tokens * keys * (nope + v_dim)
    absorbing = tokens * rank * (nope + v_dim) + tokens * keys * 2 * rank
    return tokens < keys and absorbing < expanding


def expand_latent(kv: Tensor, k_rope: Tensor, heads: int, nope: int) -> tuple[Tensor, Tensor]:
    """Keys and values of every head from projected latents.

    Args:
        kv: ``[batch, keys, heads * (nope + v_dim)]``, the latents after ``kv_b``.
        k_rope: ``[batch, keys, rope]``, the rotated keys.

    Returns:
        k ``[batch, heads, keys, nope + rope]`` and v ``[batch, heads, keys, v_dim]``.
    """
    per_head = kv.unflatten(-1, (heads, -1)).transpose(1, 2)  # [batch, heads, keys, nope + v_dim]
    shared = k_rope.unsqueeze(1).expand(-1, heads, -1, -1)  # [batch, heads, keys, rope]
    return torch.cat((per_head[..., :nope], shared), dim=-1), per_head[..., nope:]


def expanded_attention(
    q_nope: Tensor,
    q_rope: Tensor,
    kv: Tensor,
    k_rope: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float = 0.0,
    causal: bool = False,
    product: Product = fused_attention,
) -> Tensor:
    """Ordinary attention on expanded keys and values; the documentation of :func:`absorbed_attention`.

    ``kv`` is ``[batch, keys, heads * (nope + v_dim)]``, the latents after ``kv_b``; the rest is as over there.
    """
    k, v = expand_latent(kv, k_rope, heads=q_nope.shape[1], nope=q_nope.shape[-1])
    return product(torch.cat((q_nope, q_rope), dim=-1), k, v, mask, scale, dropout, causal)


def absorbed_attention(
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    kv_b: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """Attend in the latent space; the past is read once and never expanded.

    Args:
        q_nope: ``[batch, heads, tokens, nope]``; q_rope: ``[batch, heads, tokens, rope]``, rotated.
        latent: ``[batch, keys, rank]``; k_rope: ``[batch, keys, rope]``, rotated.
        kv_b: ``[heads * (nope + v_dim), rank]``.
        mask: broadcasts to ``[batch, heads, tokens, keys]``.

    Returns:
        ``[batch, heads, tokens, v_dim]``.
    """
    heads, tokens, nope = q_nope.shape[1:]
    q_latent = query_to_latent(q_nope, kv_b)
    # All heads share one key, so heads and tokens are one axis of one product over the cache. The cache stands on the
    # left and the weights below too: kernels for few columns read a long left side once, in bf16 many times faster.
    scores = matmul(latent, q_latent.flatten(1, 2).mT) + matmul(k_rope, q_rope.flatten(1, 2).mT)
    scores = scores.transpose(1, 2).unflatten(1, (heads, tokens))  # [batch, heads, tokens, keys]
    scores = masked_scores(scores * scale, mask)
    weights = F.dropout(scores.softmax(dim=-1).to(latent.dtype), dropout)
    attended = matmul(weights.flatten(1, 2), latent).unflatten(1, (heads, tokens))  # [batch, heads, tokens, rank]
    return latent_to_values(attended, kv_b, nope)


def _together(x: Tensor, kv_b: Tensor) -> int:
    """How many tokens of ``x`` ``[1, heads, tokens, width]`` do not depend on each other when they are computed."""
    return INVARIANT_TOKENS if only_numbers(x, kv_b) and kernels.serves_latent(x[:, :, :1], kv_b) else 1


def query_to_latent(q_nope: Tensor, kv_b: Tensor) -> Tensor:
    """``[batch, heads, tokens, nope]`` into the latent space, ``[batch, heads, tokens, rank]``."""
    if rows_are_invariant() and q_nope.shape[2] > (most := _together(q_nope, kv_b)):
        return torch.cat([query_to_latent(part.clone(), kv_b) for part in q_nope.split(most, dim=2)], dim=2)
    if only_numbers(q_nope, kv_b) and kernels.serves_latent(q_nope, kv_b):
        return kernels.latent_in(q_nope, kv_b)
    w_key = kv_b.unflatten(0, (q_nope.shape[1], -1))[:, : q_nope.shape[-1]]  # [heads, nope, rank]
    if not in_fp32(q_nope, w_key):
        return torch.einsum("bhtn,hnr->bhtr", q_nope, w_key)
    q_latent = matmul(q_nope.transpose(0, 1).flatten(1, 2), w_key)  # [heads, batch * tokens, rank]
    return q_latent.unflatten(1, (q_nope.shape[0], -1)).transpose(0, 1)


def latent_to_values(attended: Tensor, kv_b: Tensor, nope: int) -> Tensor:
    """Attended latents ``[batch, heads, tokens, rank]`` to what the heads say, ``[batch, heads, tokens, v_dim]``."""
    batch, heads, tokens, _ = attended.shape
    if rows_are_invariant() and tokens > (most := _together(attended, kv_b)):
        return torch.cat([latent_to_values(part.clone(), kv_b, nope) for part in attended.split(most, dim=2)], dim=2)
    if only_numbers(attended, kv_b) and kernels.serves_latent(attended, kv_b):
        return kernels.latent_to_values(attended, kv_b, nope)
    w_value = kv_b.unflatten(0, (heads, -1))[:, nope:]  # [heads, v_dim, rank]
    values = matmul(w_value, attended.permute(1, 3, 0, 2).flatten(2))  # [heads, v_dim, batch * tokens]
    return values.unflatten(2, (batch, tokens)).permute(2, 0, 3, 1)
