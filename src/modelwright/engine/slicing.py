"""Which modules of the served families several ranks share, and how those that one family alone has are cut down."""

from typing import Any

import torch
from torch import nn

from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.imagegpt.parts import ImageGPTAttention, ImageGPTMLP
from modelwright.layers import MoE
from modelwright.parallel.expert import expert_rule
from modelwright.parallel.layers import inputs_of, keep_inputs, keep_outputs, sum_results
from modelwright.parallel.mesh import Mesh
from modelwright.parallel.tensor import RULES, Rule, head_share, slice_head, slice_modules, unit_share


def slice_decoder(decoder: Any, mesh: Mesh) -> None:
    """Cut a built decoder down, in place, to this rank's part; a mesh of one leaves it whole.

    It can then compute only together with the others'. What sees pictures is no part of the decoder and stays whole.

    Raises:
        ConfigError: the ranks do not divide its heads, or a layer cannot be cut.
    """
    if mesh.size == 1:
        return
    rules: dict[type, Rule] = {MoE: expert_rule(_expert_ranks(decoder.config, mesh))}
    rules |= {ImageGPTAttention: _slice_merged_attention, ImageGPTMLP: _slice_merged_mlp}
    slice_modules(decoder, mesh, RULES | rules)
    slice_head(decoder.get_output_embeddings(), mesh)
    decoder.requires_grad_(False)


def _expert_ranks(config: Any, mesh: Mesh) -> int:
    """Over how many ranks whole experts are shared out: as ``ep_size`` says, or over all."""
    asked = config.ep_size if isinstance(config, DeepseekV2Config) else 1
    return asked if asked > 1 else mesh.size


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
