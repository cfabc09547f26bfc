"""Attention for training, ``generate()`` and export: dense tensors, an optional mask, an optional transformers cache.

Leaves out paging and packing, which are other backends. The cache is anything with transformers' ``Cache.update``; for
latent attention it holds the rotated key as "key" and the latent as "value", one head each, never expanded.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.attention.protocol import Projection
from modelwright.ops.attention import attention, causal_mask, reference_attention, upcast_attention
from modelwright.ops.dispatch import numbers_are_known
from modelwright.ops.latent import absorbed_attention, expanded_attention, prefers_absorbing


class DenseAttention:
    """The backend of one forward pass; every layer of it must hand over the same number of tokens.

    Args:
        mask: None (every key is real); ``[batch, past + tokens]`` with 0 where a key is padding; or a 4-D mask that
            broadcasts to ``[batch, heads, tokens, keys]`` and is then the whole rule: boolean (True where a query may
            look) or added to the scores. A 2-D mask may be longer; a 4-D mask may stop before the unused slots of a
            static cache.
        cache: keys and values of earlier tokens, extended in place; None when there is no past.
        past: number of tokens already in ``cache``; a tensor without dimensions where a graph is to serve any.
        causal: whether a token sees only itself and what came before it.
        fused: the fastest kernel, or the written-out product when False.
        softmax_dtype: of the written-out product's softmax; torch's kernel has a precision of its own.
        upcast: scale the queries first and take the product in fp32, autocast off.

    Raises:
        ValueError: at the first layer, if the mask has neither two nor four dimensions or is too short.
    """

    def __init__(
        self,
        mask: Tensor | None = None,
        cache: Any = None,
        past: int | Tensor = 0,
        causal: bool = True,
        fused: bool = True,
        softmax_dtype: torch.dtype = torch.float32,
        upcast: bool = False,
    ):
        self.mask = mask
        self.cache = cache
        self.past = past
        self.causal = causal
        product = attention if fused else partial(reference_attention, softmax_dtype=softmax_dtype)
        self.product = partial(upcast_attention, product) if upcast else product
        self._rule: tuple[Tensor | None, bool] | None = None  # the same for every layer of the pass

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: float = 0.0) -> Tensor:
        """See :class:`AttentionBackend`."""
        if self.cache is not None:
            k, v = self.cache.update(k, v, layer)
        mask, causal = self._mask_for(q.shape[2], k.shape[2], q.device)
        return self.product(q, k, v, mask, scale, dropout, causal)

    def attend_latent(
        self,
        layer: int,
        q_nope: Tensor,
        q_rope: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        kv_b: Projection,
        *,
        kv_b_weight: Tensor | None,
        scale: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """See :class:`AttentionBackend`."""
        if self.cache is not None:
            k_rope, latent = self.cache.update(k_rope.unsqueeze(1), latent.unsqueeze(1), layer)
            k_rope, latent = k_rope.squeeze(1), latent.squeeze(1)
        mask, causal = self._mask_for(q_nope.shape[2], latent.shape[1], latent.device)
        if kv_b_weight is not None and _absorbs(kv_b_weight, q_nope, latent):
            return absorbed_attention(q_nope, q_rope, latent, k_rope, kv_b_weight, mask, scale, dropout)
        return expanded_attention(
            q_nope, q_rope, kv_b(latent), k_rope, mask, scale, dropout, causal, product=self.product
        )

    def settle(self, tokens: int, device: torch.device) -> None:
        """Find the mask of a pass without a past now, and not at its first layer, whose graph may change nothing."""
        self._mask_for(tokens, tokens, device)

    def _mask_for(self, tokens: int, keys: int, device: torch.device) -> tuple[Tensor | None, bool]:
        """The mask tensor, if one is needed, and whether a square causal rule stands in for it."""
        if self._rule is None:
            self._rule = self._build_rule(tokens, keys, device)
        mask, causal = self._rule
        return (None if mask is None else mask.to(device)), causal  # layers may lie on several devices

    def _build_rule(self, tokens: int, keys: int, device: torch.device) -> tuple[Tensor | None, bool]:
        if self.mask is not None and self.mask.dim() == 4:
            return _whole_rule(self.mask, keys), False
        known = self.past + tokens if isinstance(self.past, int) else None
        real = None if self.mask is None else _real_keys(self.mask.to(device), known or tokens, keys)
        if real is None and keys == known:  # neither padding nor unused slots
            if tokens == 1 or not self.causal:
                return None, False
            if known == tokens:
                return None, True
        if self.causal:
            sees = causal_mask(tokens, keys, self.past, device)  # [tokens, keys]
        else:
            sees = (torch.arange(keys, device=device) < self.past + tokens)[None]  # [1, keys]
        return _never_blind(sees[None, None] if real is None else sees & real[:, None, None]), False


def _absorbs(kv_b: Tensor, q_nope: Tensor, latent: Tensor) -> bool:
    heads, tokens, nope = q_nope.shape[1:]
    return prefers_absorbing(tokens, latent.shape[1], nope, len(kv_b) // heads - nope, rank=latent.shape[2])


def _whole_rule(mask: Tensor, keys: int) -> Tensor:
    """A 4-D mask over exactly ``keys`` keys (or 1, to broadcast): cut, or extended by slots that nobody sees."""
    beyond = 0 if mask.shape[-1] == 1 else max(keys - mask.shape[-1], 0)
    if mask.dtype == torch.bool:
        return _never_blind(F.pad(mask[..., :keys], (0, beyond), value=False))
    return F.pad(mask[..., :keys], (0, beyond), value=torch.finfo(mask.dtype).min)


def _real_keys(mask: Tensor, known: int, keys: int) -> Tensor | None:
    """``[batch, keys]``, True at what is not padding (slots beyond the ``known`` tokens too); None if nothing is.

    Whether a mask hides nothing is not asked while a graph is made, which serves other masks too.
    """
    if mask.dim() != 2 or mask.shape[1] < known:
        raise ValueError(
            f"attention_mask must be [batch, keys] with a column for each of the {known} past and new tokens, "
            f"or have 4 dimensions; got {list(mask.shape)}"
        )
    if numbers_are_known(mask) and bool(mask.all()):
        return None
    return F.pad(mask.bool()[:, :keys], (0, max(keys - mask.shape[1], 0)), value=True)


def _never_blind(sees: Tensor) -> Tensor:
    """A query that may look at nothing (padding's own) looks at everything, so that no kernel divides by zero."""
    return sees | ~sees.any(dim=-1, keepdim=True)
