"""From vision features to language width: the four projectors of DeepSeek-VL2 and the 2x2 pooling before them."""

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from modelwright.families.deepseek_vl2.config import MlpProjectorConfig
from modelwright.layers import Linear


class MlpProjector(nn.Module):
    """``[tiles, side * side, input_dim]`` to ``[tiles, tokens, n_embed]``; only the configured projector is built."""

    def __init__(self, config: MlpProjectorConfig):
        super().__init__()
        self.config = config
        if config.token_pooling:
            self.token_pooling_layer = Linear(config.input_dim * 4, config.input_dim, bias=config.use_bias)
        self.layers = _build(config)

    def forward(self, x: Tensor) -> Tensor:
        if self.config.token_pooling:
            x = self.token_pooling_layer(join_neighbours(x, 2))
        if self.config.projector_type == "downsample_mlp_gelu":
            x = join_neighbours(x, self.config.downsample_ratio)
        return self.layers(x)


def join_neighbours(x: Tensor, ratio: int) -> Tensor:
    """Concatenate each ``ratio x ratio`` square of patches channel by channel (the order of ``F.unfold``).

    ``[tiles, side * side, dim]`` to ``[tiles, ceil(side / ratio)^2, dim * ratio^2]``; a side that ``ratio`` does not
    divide is padded with zeros at the right and the bottom.
    """
    side = math.isqrt(x.shape[1])
    grid = x.transpose(1, 2).unflatten(-1, (side, side))  # [tiles, dim, side, side]
    padding = -side % ratio
    grid = F.pad(grid, (0, padding, 0, padding))
    return F.unfold(grid, kernel_size=ratio, stride=ratio).transpose(1, 2)


def _build(config: MlpProjectorConfig) -> nn.Module:
    if config.projector_type == "identity":
        return nn.Identity()
    if config.projector_type == "linear":
        return Linear(config.input_dim, config.n_embed, bias=config.use_bias)
    if config.projector_type == "mlp_gelu":
        return _gelu_stack([config.input_dim] + [config.n_embed] * config.depth, config.use_bias)
    joined = config.input_dim * config.downsample_ratio**2
    hidden = [config.n_embed * config.mlp_ratio] * (config.depth - 1)
    return _gelu_stack([joined, *hidden, config.n_embed], config.use_bias)


def _gelu_stack(widths: list[int], bias: bool) -> nn.Sequential:
    """Linear layers through ``widths``, exact GELU between them; they are 0, 2, 4, ... as in official checkpoints."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [Linear(before, after, bias=bias), nn.GELU()]
    return nn.Sequential(*layers[:-1])
