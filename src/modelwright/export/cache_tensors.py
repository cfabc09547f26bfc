"""What a decoder caches, as the tensors of a graph: their names, axes and order, from the layout of its cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modelwright.configs.decoding import CacheLayout

Axes = Mapping[int, str]
"""The dynamic axes of one tensor: dimension to name; a sum of names is an axis that follows from the others."""

BATCH = "batch"


@dataclass(frozen=True)
class Part:
    """One of the tensors that a layer caches, ``[batch, heads, past, width]``."""

    name: str
    heads: int
    width: int


@dataclass(frozen=True)
class CacheTensors:
    """Two tensors a layer, in the order of a transformers cache's "key" and "value".

    With latent attention the "key" is the rotated key and the "value" the latent, of one head each.
    """

    layout: CacheLayout

    @property
    def layers(self) -> int:
        """How many layers cache."""
        return self.layout.layers

    @property
    def parts(self) -> tuple[Part, Part]:
        """The two tensors of each layer."""
        heads = self.layout.heads or 1
        return Part("key", heads, self.layout.keys), Part("value", heads, self.layout.values)

    def names(self, prefix: str) -> list[str]:
        """``prefix.N.part`` of every layer in turn."""
        return [f"{prefix}.{layer}.{part.name}" for layer in range(self.layers) for part in self.parts]

    def axes(self, prefix: str, length: str) -> dict[str, Axes]:
        """The dynamic axes of every tensor, ``length`` naming that of the tokens."""
        return {name: {0: BATCH, 2: length} for name in self.names(prefix)}

    def pairs(self, tensors: Mapping[str, Any], prefix: str) -> list[tuple[Any, Any]]:
        """Each layer's two tensors among ``tensors``."""
        first, second = (part.name for part in self.parts)
        return [(tensors[f"{prefix}.{n}.{first}"], tensors[f"{prefix}.{n}.{second}"]) for n in range(self.layers)]

    def named(self, pairs: list[tuple[Tensor, Tensor]], prefix: str) -> dict[str, Tensor]:
        """The inverse of :meth:`pairs`."""
        return dict(zip(self.names(prefix), (tensor for pair in pairs for tensor in pair), strict=True))

    def random(self, batch: int, past: int, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
        """Past tensors of standard normal numbers."""
        return {
            f"past.{layer}.{part.name}": torch.randn(batch, part.heads, past, part.width, generator=generator).to(dtype)
            for layer in range(self.layers)
            for part in self.parts
        }
