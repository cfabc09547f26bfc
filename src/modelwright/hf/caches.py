"""The cache of a forward pass: the one that a caller gives, a new one that grows, or none."""

from collections.abc import Iterable

from torch import nn
from transformers import Cache, DynamicCache

from modelwright.attention import AttentionBackend
from modelwright.errors import RequestError

__all__ = ["Cache", "growing_cache", "pass_cache"]


def growing_cache() -> Cache:
    """An empty cache, which takes any number of layers and tokens."""
    return DynamicCache()


def pass_cache(
    given: Cache | None, wanted: bool, attention: AttentionBackend | None, layers: Iterable[nn.Module | None]
) -> Cache | None:
    """The cache of a pass: the one given, a new one if it is to be returned, or None.

    Layers that recompute themselves in training would append to a cache again, so they get none.

    Raises:
        RequestError: such layers are to continue a cache.
    """
    if any(layer is not None and layer.training and layer.gradient_checkpointing for layer in layers):
        if given is not None and given.get_seq_length():
            raise RequestError("gradient checkpointing recomputes layers and cannot continue a cache")
        return None
    return growing_cache() if given is None and wanted and attention is None else given
