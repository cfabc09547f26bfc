"""How several ranks share an ImageGPT, whose merged projections no other family has."""

import torch
from torch import nn

from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.parts import ImageGPTAttention, ImageGPTMLP
from modelwright.parallel import Mesh, Rule
from modelwright.parallel.layers import inputs_of, keep_inputs, keep_outputs, sum_results
from modelwright.parallel.tensor import head_share, unit_share


def slicing_rules(config: ImageGPTConfig, mesh: Mesh) -> dict[type, Rule]:
    """Whole heads of the merged attention, and hidden units of the feed-forward."""
    return {ImageGPTAttention: _slice_merged_attention, ImageGPTMLP: _slice_merged_mlp}


def _slice_merged_attention(attention: ImageGPTAttention, mesh: Mesh) -> None:
    """Whole heads of a merged projection, whose outputs are those of all queries, all keys, all values."""
    width, size = inputs_of(attention.c_proj), attention.head_dim
    heads = head_share(width // size, mesh)
    own = range(heads.start * size, heads.stop * size)
    starts = (0, width, 2 * width)
    keep_outputs(attention.c_attn, torch.cat([torch.arange(own.start, own.stop) + start for start in starts]))
    _keep_and_sum(attention.c_proj, own, mesh)


def _slice_merged_mlp(mlp: ImageGPTMLP, mesh: Mesh) -> None:
    units = unit_share(inputs_of(mlp.c_proj), mesh)
    keep_outputs(mlp.c_fc, torch.arange(units.start, units.stop))
    _keep_and_sum(mlp.c_proj, units, mesh)


def _keep_and_sum(projection: nn.Module, own: range, mesh: Mesh) -> None:
    keep_inputs(projection, own, mesh)
    sum_results(projection, mesh)
