"""Tensor parallelism: a built decoder cut down, in place, to one rank's share of its heads, widths and vocabulary.

Each rank keeps some heads of every attention and some hidden units of every feed-forward, and the results are added up
over the ranks after the output projection. Embedding, norms, routers, and the projections into latents stay whole.
Experts are in `expert`; layers that only one family has are described by whoever knows the family. Inference only.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelwright.errors import ConfigError
from modelwright.layers import GatedMLP, GroupedQueryAttention, LatentAttention, Linear, PlainMLP
from modelwright.layers.linear import CastLinear, ColumnSlicedLinear
from modelwright.layers.quantized import QuantizedLinear
from modelwright.parallel.layers import inputs_of, keep_inputs, keep_outputs, sum_results
from modelwright.parallel.mesh import Mesh

Rule = Callable[[Any, Mesh], None]
"""Cuts a module down to the mesh's share, and lets the ranks add up what is partial."""

HEADS = (Linear, nn.Linear, CastLinear, ColumnSlicedLinear, QuantizedLinear)
"""Output heads that are nothing but their matrix, whose rows can be shared out."""


def slice_modules(model: nn.Module, mesh: Mesh, rules: Mapping[type, Rule]) -> None:
    """Apply the rule of each module's very type, outermost first; what has none stays whole.

    Raises:
        ConfigError: the ranks do not divide what a rule shares out, or a layer cannot be cut.
    """
    for child in model.children():
        rule = rules.get(type(child))
        if rule is None:
            slice_modules(child, mesh, rules)
        else:
            rule(child, mesh)


def head_share(heads: int, mesh: Mesh) -> range:
    """This rank's query heads.

    Raises:
        ConfigError: the ranks do not divide them.
    """
    if heads % mesh.size:
        raise ConfigError(f"the attention heads ({heads}) must be divisible by the ranks ({mesh.size})")
    return mesh.share(heads)


def key_head_share(heads: int, mesh: Mesh) -> range:
    """This rank's key and value heads; with fewer heads than ranks each is kept by as many ranks as share its queries.

    Raises:
        ConfigError: neither number divides the other.
    """
    if heads % mesh.size and mesh.size % heads:
        raise ConfigError(
            f"the key and value heads ({heads}) must be divisible by the ranks ({mesh.size}), or divide them"
        )
    if heads >= mesh.size:
        return mesh.share(heads)
    own = mesh.rank * heads // mesh.size
    return range(own, own + 1)


def slice_grouped_query(attention: GroupedQueryAttention, mesh: Mesh) -> None:
    """Whole query heads, and the key and value heads that they share."""
    size, (q_width, kv_width, _) = attention.head_dim, attention.widths
    queries = head_share(q_width // size, mesh)
    keys = key_head_share(kv_width // size, mesh)
    wanted = [_rows(heads, size) for heads in (queries, keys, keys)]
    if attention.fused:
        keep_outputs(attention.qkv_proj, _fused_rows(attention, wanted, len(keys)))
        attention.groups = len(keys) if attention.groups > 1 else 1
    else:
        for projection, rows in zip((attention.q_proj, attention.k_proj, attention.v_proj), wanted, strict=True):
            keep_outputs(projection, rows)
    keep_inputs(attention.o_proj, _numbers(queries, size), mesh)
    sum_results(attention.o_proj, mesh)
    attention.widths = [len(rows) for rows in wanted]


def slice_latent(attention: LatentAttention, mesh: Mesh) -> None:
    """Whole heads; every rank keeps all of the latent, which has none."""
    heads = attention.heads
    queries = head_share(heads, mesh)
    v_dim = inputs_of(attention.o_proj) // heads
    query = attention.q_proj if attention.q_rank is None else attention.q_b_proj
    keep_outputs(query, _rows(queries, attention.nope + attention.rope))
    keep_outputs(attention.kv_b_proj, _rows(queries, attention.nope + v_dim))
    keep_inputs(attention.o_proj, _numbers(queries, v_dim), mesh)
    sum_results(attention.o_proj, mesh)
    attention.heads = len(queries)


def slice_mlp(mlp: GatedMLP | PlainMLP, mesh: Mesh) -> None:
    """Some hidden units, as even as possible, and the sum of what they give."""
    keep_hidden(mlp, mesh)
    sum_results(mlp, mesh)


def keep_hidden(mlp: GatedMLP | PlainMLP, mesh: Mesh) -> None:
    """This rank's hidden units; what it gives is a part of the sum.

    Raises:
        ConfigError: there are fewer units than ranks.
    """
    gated = isinstance(mlp, GatedMLP)
    out = mlp.down_proj if gated else mlp.fc2
    units = unit_share(inputs_of(out), mesh)
    if gated and mlp.fused:
        keep_outputs(mlp.gate_up_proj, _rows(units, 2))
    else:
        for layer in (mlp.gate_proj, mlp.up_proj) if gated else (mlp.fc1,):
            keep_outputs(layer, _rows(units))
    keep_inputs(out, units, mesh)


def unit_share(units: int, mesh: Mesh) -> range:
    """This rank's hidden units.

    Raises:
        ConfigError: there are fewer of them than ranks.
    """
    if units < mesh.size:
        raise ConfigError(f"the hidden units of a feed-forward ({units}) must be at least the ranks ({mesh.size})")
    return mesh.share(units)


def slice_head(head: Any, mesh: Mesh) -> None:
    """Some of the vocabulary, computed by each rank and put together on all; a head of another kind stays whole."""
    if type(head) not in HEADS:
        return
    vocabulary = head.out_features
    each = -(-vocabulary // mesh.size)
    own = range(min(each * mesh.rank, vocabulary), min(each * (mesh.rank + 1), vocabulary))
    keep_outputs(head, _rows(own))

    def whole(_: nn.Module, __: Any, scores: Tensor) -> Tensor:
        padded = F.pad(scores, (0, each - len(own)))  # the ranks say equally much
        return mesh.concatenate(padded)[..., :vocabulary]

    head.register_forward_hook(whole)


RULES: dict[type, Rule] = {
    GroupedQueryAttention: slice_grouped_query,
    LatentAttention: slice_latent,
    GatedMLP: slice_mlp,
    PlainMLP: slice_mlp,
}


def _numbers(things: range, size: int) -> range:
    """The places of things of `size` each."""
    return range(things.start * size, things.stop * size)


def _rows(things: range, size: int = 1) -> Tensor:
    """Their places as an index."""
    places = _numbers(things, size)
    return torch.arange(places.start, places.stop)


def _fused_rows(attention: GroupedQueryAttention, wanted: list[Tensor], groups: int) -> Tensor:
    """Where rows of the official projections lie in the fused one, in the order in which a smaller one holds them."""
    whole = torch.arange(sum(attention.widths))
    places = [whole[slot.index][rows] for slot, rows in zip(_weight_slots(attention), wanted, strict=True)]
    if attention.groups == 1:
        return torch.cat(places)
    return torch.cat([part.view(groups, -1) for part in places], dim=1).flatten()


def _weight_slots(attention: GroupedQueryAttention) -> list[Any]:
    slots = attention.slots()
    return [slots[f"{name}_proj.weight"] for name in "qkv"]
