"""How each tensor of a new checkpoint is made from tensors of the old one; nothing is read before a recipe is followed.

A conversion is a chain of recipes: what the source holds under official names, then fewer key heads, then what the
target holds. Leaves out names, which a family's dialect has, and files (``convert.py``).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modelwright.checkpoints.layouts import PackedTensor
from modelwright.errors import ConfigError

KEY_OR_VALUE = re.compile(r"\.self_attn\.[kv]_proj\.(weight|bias)$")


@dataclass(frozen=True)
class Recipe:
    """Tensor ``name`` of ``shape`` is ``build`` of the tensors ``sources``, which may be views and are not changed."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    build: Callable[[Sequence[Tensor]], Tensor]


def copy_of(name: str, shape: tuple[int, ...]) -> Recipe:
    """The tensor as it is."""
    return Recipe(name, shape, (name,), lambda parts: parts[0])


def unpack(tensors: Iterable[PackedTensor]) -> list[Recipe]:
    """Official tensors from those of another dialect."""
    return [
        Recipe(part, shape, (tensor.name,), lambda parts, t=tensor, i=index: t.layout.part(parts[0], i))
        for tensor in tensors
        for index, (part, shape) in enumerate(tensor.parts.items())
    ]


def pack(tensors: Iterable[PackedTensor]) -> list[Recipe]:
    """Tensors of another dialect from the official ones."""
    return [Recipe(tensor.name, tensor.shape, tuple(tensor.parts), tensor.layout.join) for tensor in tensors]


def chain(recipes: Iterable[Recipe], made: Iterable[Recipe]) -> list[Recipe]:
    """``recipes``, which read what ``made`` makes, rewritten to read what ``made`` reads."""
    known = {recipe.name: recipe for recipe in made}
    return [_chained(recipe, [known[source] for source in recipe.sources]) for recipe in recipes]


def _chained(recipe: Recipe, inner: list[Recipe]) -> Recipe:
    sources = tuple(source for part in inner for source in part.sources)

    def build(parts: Sequence[Tensor]) -> Tensor:
        rest = iter(parts)
        return recipe.build([part.build([next(rest) for _ in part.sources]) for part in inner])

    return replace(recipe, sources=sources, build=build)


def pool_heads(recipes: Iterable[Recipe], heads: int, fewer: int) -> list[Recipe]:
    """Key and value projections of ``heads`` heads averaged down to ``fewer`` (arXiv:2305.13245, section 2.1).

    Each new head is the mean of ``heads / fewer`` neighbours, which are those whose queries it will serve; taken in
    fp32 (fp64 stays), stored in the type it came in.

    Raises:
        ConfigError: ``fewer`` is not a divisor of ``heads``.
    """
    if fewer < 1 or heads % fewer:
        raise ConfigError(f"num_key_value_heads ({heads}) must be divisible by the new num_key_value_heads ({fewer})")
    return [_pooled(recipe, heads, fewer) if KEY_OR_VALUE.search(recipe.name) else recipe for recipe in recipes]


def _pooled(recipe: Recipe, heads: int, fewer: int) -> Recipe:
    rows, *columns = recipe.shape

    def build(parts: Sequence[Tensor]) -> Tensor:
        whole = recipe.build(parts)
        wide = whole.to(torch.promote_types(whole.dtype, torch.float32))
        grouped = wide.unflatten(0, (fewer, heads // fewer, -1))  # [fewer, neighbours, head_dim, ...]
        return grouped.mean(dim=1).flatten(0, 1).to(whole.dtype)

    return replace(recipe, shape=(rows * fewer // heads, *columns), build=build)
