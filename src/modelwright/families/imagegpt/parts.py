"""ImageGPT's parts as its config asks for them: a block, its attention and feed-forward, and the head over colours.

Leaves out the models around them (``model.py``). Projections are transformers' ``Conv1D``, whose weights are
``[in, out]``: that is the official layout, and what adapters look for.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from modelwright.attention import AttentionBackend
from modelwright.errors import RequestError
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.hf.arguments import check_range
from modelwright.hf.modules import Conv1D
from modelwright.layers import RMSNorm, wanted
from modelwright.layers.activations import activation
from modelwright.layers.checkpointed import CheckpointedLayer
from modelwright.ops.cross_entropy import IGNORED
from modelwright.ops.input_major import input_major_linear
from modelwright.ops.invariant import row_wise, rows_are_invariant
from modelwright.ops.linear import linear
from modelwright.ops.products import plain_linear


def attention_scale(config: ImageGPTConfig, layer: int) -> float:
    """What a layer's scores are multiplied by: ``1 / sqrt(head_dim)``, a further ``1 / (layer + 1)``, both or neither.

    ``scale_attn_weights`` asks for the first, ``scale_attn_by_inverse_layer_idx`` for the second.
    """
    scale = config.head_dim**-0.5 if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


class Projection(Conv1D):
    """``x @ weight + bias`` by the compiled kernels where they serve; adapters know it by its base class."""

    def forward(self, x: Tensor) -> Tensor:
        return input_major_linear(x, self.weight, self.bias)


class ResidualProjection(Projection):
    """A projection whose result is added to the residual, which is why its first weights are smaller."""


class ImageGPTAttention(nn.Module):
    """Multi-head attention with one merged projection: ``[batch, tokens, n_embd]`` to the same."""

    def __init__(self, config: ImageGPTConfig, layer: int):
        super().__init__()
        self.layer_idx, self.head_dim = layer, config.head_dim
        self.scale = attention_scale(config, layer)
        self.attn_dropout, self.resid_dropout = config.attn_pdrop, config.resid_pdrop
        self.c_attn = Projection(3 * config.n_embd, config.n_embd)
        self.c_proj = ResidualProjection(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, attention: AttentionBackend) -> Tensor:
        q, k, v = (self._heads(part) for part in self.c_attn(x).chunk(3, dim=-1))  # [batch, heads, tokens, head_dim]
        dropout = self.attn_dropout if self.training else 0.0
        out = attention.attend(self.layer_idx, q, k, v, scale=self.scale, dropout=dropout)
        return F.dropout(self.c_proj(out.transpose(1, 2).flatten(2)), self.resid_dropout, self.training)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class ImageGPTMLP(nn.Module):
    """``c_proj(act(c_fc(x)))``: ``[batch, tokens, n_embd]`` to the same."""

    def __init__(self, config: ImageGPTConfig):
        super().__init__()
        self.c_fc = Projection(config.inner_width, config.n_embd)
        self.c_proj = ResidualProjection(config.n_embd, config.inner_width)
        self.act = activation(config.activation_function)
        self.dropout = config.resid_pdrop

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.c_proj(row_wise(self.act, self.c_fc(x))), self.dropout, self.training)


class ImageGPTBlock(CheckpointedLayer):
    """``x + attn(ln_1(x))``, then ``x + mlp(ln_2(x))``: ``[batch, tokens, n_embd]`` to the same.

    The norms neither subtract a mean nor add a bias. With ``only``, the result is that of the tokens at these indices.
    """

    def __init__(self, config: ImageGPTConfig, layer: int):
        super().__init__()
        self.ln_1 = build_norm(config)
        self.attn = ImageGPTAttention(config, layer)
        self.ln_2 = build_norm(config)
        self.mlp = ImageGPTMLP(config)

    def forward(self, x: Tensor, attention: AttentionBackend, only: Tensor | None = None) -> Tensor:
        x = wanted(x + self.attn(self.ln_1(x), attention), only)
        return x + self.mlp(self.ln_2(x))


class ColourHead(nn.Linear):
    """Scores of the colours. A weight tied to the embedding has a row for the start token too, which is left out."""

    def __init__(self, config: ImageGPTConfig):
        super().__init__(config.n_embd, config.start_token_id, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        product = linear if rows_are_invariant() else plain_linear
        return product(input, self.weight[: self.out_features])


def build_norm(config: ImageGPTConfig) -> RMSNorm:
    """``weight * x / sqrt(mean(x^2) + layer_norm_epsilon)``."""
    return RMSNorm(config.n_embd, config.layer_norm_epsilon)


def next_colours(labels: Tensor, colours: int) -> Tensor:
    """The colour that each place is to foresee, ``[batch, tokens]``; -100 where nothing counts.

    Args:
        labels: ``[batch, tokens]``, those of the tokens themselves (they are shifted here), -100 where none is meant.
            The first label is never foreseen.

    Raises:
        RequestError: a later label is the start token, which the head does not score, or no token at all.
    """
    labels = labels[:, 1:]
    check_range("labels after the first", labels.masked_fill(labels == IGNORED, 0), colours, "the number of colours")
    return F.pad(labels, (0, 1), value=IGNORED)


def check_positions(needed: int, limit: int) -> None:
    """Raise a :class:`RequestError` where a row of ``needed`` past and new tokens outgrows the table of positions."""
    if needed > limit:
        raise RequestError(f"position {needed - 1} must be below n_positions ({limit}): a row has {needed} tokens")
