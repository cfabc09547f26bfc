"""ImageGPT's sizes from its config: learned positions, biased projections, a plain feed-forward."""

from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.planner.counts import Counts
from modelwright.planner.shapes import FeedForward, GroupedAttention, Layer, Linear


def count_imagegpt(config: ImageGPTConfig) -> Counts:
    """The decoder with its head over colours, which is one narrower than the vocabulary."""
    dim, heads = config.n_embd, config.n_head
    attention = GroupedAttention(dim, heads, heads, config.head_dim, qkv_bias=True, out_bias=True)
    layer = Layer(attention, FeedForward(dim, config.inner_width, gated=False, bias=True), norms=2 * dim)
    return Counts(
        model_type=config.model_type,
        dim=dim,
        vocab=config.vocab_size,
        positions=config.n_positions,
        layers=(layer,) * config.n_layer,
        final_norm=dim,
        head=Linear(dim, config.vocab_size - 1, cut="outputs"),
        tied=config.tie_word_embeddings,
    )
