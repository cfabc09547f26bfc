"""The cache of a forward pass: the one that a caller gives, a new one that grows, or none."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, StaticLayer
from transformers.utils import logging

from modelwright.attention import AttentionBackend
from modelwright.errors import RequestError
from modelwright.ops.dispatch import numbers_are_known

__all__ = ["Cache", "cached_tokens", "check_room", "growing_cache", "pass_cache", "slots_of"]

logger = logging.get_logger(__name__)


def growing_cache() -> Cache:
    """An empty cache, which takes any number of layers and tokens."""
    return DynamicCache()


def cached_tokens(cache: Cache | None) -> int | Tensor:
    """How many tokens of each row a cache holds; none where there is no cache.

    A static cache counts them in a tensor without dimensions. While a graph is made that stays one, though not the
    cache's own, which its first layer already moves on: the graph is to serve every count, and must not be broken to
    read this one.
    """
    held: int | Tensor = 0 if cache is None else cache.get_seq_length()
    return held.clone() if isinstance(held, Tensor) and not numbers_are_known(held) else int(held)


def slots_of(cache: Cache) -> int:
    """For how many tokens of each row a static cache has room."""
    first: Any = cache.layers[0]
    return first.keys.shape[-2]


def check_room(cache: Cache | None, batch: int, past: int | Tensor, tokens: int) -> None:
    """Raise a :class:`RequestError` where the first layer of a cache holds other rows, or no room for the new tokens.

    Layers of other kinds, such as those that forget, are not asked.
    """
    first: Any = cache.layers[0] if cache is not None and cache.layers else None
    if not isinstance(past, int) or type(first) not in (DynamicLayer, StaticLayer):
        return
    if past and first.keys.shape[0] != batch:
        raise RequestError(
            f"cache holds {first.keys.shape[0]} rows and the pass brings {batch}: cache.batch_repeat_interleave(n) and "
            "cache.batch_select_indices(rows) change those of a cache"
        )
    if type(first) is StaticLayer and first.max_cache_len < past + tokens:
        raise RequestError(
            f"cache has room for {first.max_cache_len} tokens of each row, and {past + tokens} are needed ({past} past "
            f"and {tokens} new): make it with a max_cache_len of as many"
        )


def pass_cache(
    given: Cache | None, wanted: bool, attention: AttentionBackend | None, layers: Iterable[nn.Module | None]
) -> Cache | None:
    """The cache of a pass: the one given, a new one if it is to be returned, or None.

    Layers that recompute themselves in a backward pass would append to a cache again, so they get none, and the log
    says so. Without gradients, as in ``generate()``, no backward pass comes: then they take one in training mode too.

    Raises:
        RequestError: such layers are to continue a cache, or what is given is none.
    """
    if isinstance(given, tuple | list):
        raise RequestError(
            f"cache (past_key_values) must be a cache of transformers, got a {type(given).__name__}: DynamicCache(it) "
            "makes one of keys and values by layers"
        )
    recomputed = any(layer is not None and layer.training and layer.gradient_checkpointing for layer in layers)
    if recomputed and torch.is_grad_enabled():
        if given is not None and given.get_seq_length():
            raise RequestError("gradient checkpointing recomputes layers and cannot continue a cache")
        if wanted or given is not None:
            logger.warning_once("use_cache=True is incompatible with gradient checkpointing: this pass keeps no cache")
        return None
    return growing_cache() if given is None and wanted and attention is None else given


def refuse_heads(cache: Cache) -> None:
    """Raise a RequestError where a cache that a caller filled holds keys of heads, for attention that has latents."""
    keys = getattr(next(iter(cache.layers), None), "keys", None)
    if isinstance(keys, Tensor) and keys.numel() and keys.shape[1] != 1:
        raise RequestError(
            f"the cache holds keys of {keys.shape[1]} heads, and latent attention keeps one vector of each token: "
            "peft's prefix tuning makes such caches and does not fit it; prompt tuning and LoRA do"
        )
