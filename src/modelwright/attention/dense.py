"""Attention for training, ``generate()`` and export: dense tensors, an optional mask, an optional transformers cache.

Leaves out paging and packing, which are other backends. The cache is anything with transformers' ``Cache.update``; for
latent attention it holds the rotated key as "key" and the latent as "value", one head each, never expanded.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from modelwright.ops.attention import causal_mask, fused_attention, reference_attention
from modelwright.ops.latent import absorbed_attention, expanded_attention, prefers_absorbing


class DenseAttention:
    """The backend of one forward pass.

    Args:
        mask: None (every key is real), ``[batch, keys]`` with 0 where a key is padding, or ``[batch, 1 or heads, tokens,
            keys]``, which then is the whole rule: boolean (True where a query may look) or added to the scores.
        cache: keys and values of earlier tokens, extended in place; None when there is no past.
        past: number of tokens already in ``cache``.
        causal: whether a token sees only itself and what came before it.
        fused: torch's kernel, or the written-out product when False.
    """

    def __init__(
        self, mask: Tensor | None = None, cache: Any = None, past: int = 0, causal: bool = True, fused: bool = True
    ):
        self.mask = mask
        self.cache = cache
        self.past = past
        self.causal = causal
        self.fused = fused
        self._rule: tuple[Tensor | None, bool] | None = None  # the same for every layer of the pass

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: float = 0.0) -> Tensor:
        """See :class:`AttentionBackend`."""
        if self.cache is not None:
            k, v = self.cache.update(k, v, layer)
        mask, causal = self._mask_for(q.shape[2], k.shape[2], q.device)
        if self.fused:
            return fused_attention(q, k, v, mask, scale, dropout, causal)
        if causal:
            mask = causal_mask(q.shape[2], k.shape[2], 0, q.device)
        return reference_attention(q, k, v, mask, scale, dropout)

    def attend_latent(
        self,
        layer: int,
        q_nope: Tensor,
        q_rope: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        kv_b: nn.Module,
        *,
        scale: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """See :class:`AttentionBackend`."""
        if self.cache is not None:
            k_rope, latent = self.cache.update(k_rope.unsqueeze(1), latent.unsqueeze(1), layer)
            k_rope, latent = k_rope.squeeze(1), latent.squeeze(1)
        mask, causal = self._mask_for(q_nope.shape[2], latent.shape[1], latent.device)
        if self._absorbs(kv_b, q_nope, latent):
            return absorbed_attention(q_nope, q_rope, latent, k_rope, kv_b.weight, mask, scale, dropout)
        return expanded_attention(q_nope, q_rope, kv_b(latent), k_rope, mask, scale, dropout, causal)

    def _absorbs(self, kv_b: nn.Module, q_nope: Tensor, latent: Tensor) -> TypeGuard[nn.Linear]:
        """Whether the plain weight of ``kv_b`` goes into the query; an adapted or quantised layer is called instead."""
        if type(kv_b) is not nn.Linear:
            return False
        heads, tokens, nope = q_nope.shape[1:]
        v_dim = kv_b.out_features // heads - nope
        return prefers_absorbing(tokens, latent.shape[1], nope, v_dim, rank=latent.shape[2])

    def _mask_for(self, tokens: int, keys: int, device: torch.device) -> tuple[Tensor | None, bool]:
        """The mask tensor, if one is needed, and whether a square causal rule stands in for it."""
        if self._rule is None:
            self._rule = self._build_mask(tokens, keys, device)
        return self._rule

    def _build_mask(self, tokens: int, keys: int, device: torch.device) -> tuple[Tensor | None, bool]:
        if self.mask is not None and self.mask.dim() == 4:
            return self.mask[..., :keys], False
        padded = self.mask is not None and not bool(self.mask.all())
        past_only = keys == self.past + tokens
        if not padded and past_only and (tokens == 1 or not self.causal):
            return None, False
        if not padded and past_only and self.past == 0:
            return None, True
        rule = torch.ones(tokens, keys, dtype=torch.bool, device=device)
        if self.causal:
            rule = causal_mask(tokens, keys, self.past, device)
        rule = rule[None, None]  # [1, 1, tokens, keys]
        if padded and self.mask is not None:
            rule = rule & _key_padding(self.mask, keys)[:, None, None]
        return rule | ~rule.any(dim=-1, keepdim=True), False  # a padding query sees everything rather than nothing


def _key_padding(mask: Tensor, keys: int) -> Tensor:
    """``[batch, keys]``, True at real keys; slots of a static cache beyond the mask count as real, the causal rule hides them."""
    mask = mask.bool()
    return torch.nn.functional.pad(mask, (0, keys - mask.shape[1]), value=True) if keys > mask.shape[1] else mask
