"""The cache of a forward pass: the one that a caller gives, a new one that grows, or none."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import Cache, DynamicCache
from transformers.utils import logging

from modelwright.attention import AttentionBackend
from modelwright.errors import RequestError

__all__ = ["Cache", "growing_cache", "pass_cache"]

logger = logging.get_logger(__name__)


def growing_cache() -> Cache:
    """An empty cache, which takes any number of layers and tokens."""
    return DynamicCache()


def pass_cache(
    given: Cache | None, wanted: bool, attention: AttentionBackend | None, layers: Iterable[nn.Module | None]
) -> Cache | None:
    """The cache of a pass: the one given, a new one if it is to be returned, or None.

    Layers that recompute themselves in a backward pass would append to a cache again, so they get none, and the log
    says so. Without gradients, as in ``generate()``, no backward pass comes: then they take one in training mode too.

    Raises:
        RequestError: such layers are to continue a cache.
    """
    recomputed = any(layer is not None and layer.training and layer.gradient_checkpointing for layer in layers)
    if recomputed and torch.is_grad_enabled():
        if given is not None and given.get_seq_length():
            raise RequestError("gradient checkpointing recomputes layers and cannot continue a cache")
        if wanted or given is not None:
            logger.warning_once("use_cache=True is incompatible with gradient checkpointing: this pass keeps no cache")
        return None
    return growing_cache() if given is None and wanted and attention is None else given
