"""ImageGPT's sizes from its config: learned positions, biased projections, a plain feed-forward."""

from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.planner.computing import Computing, kept_by_activation
from modelwright.planner.counts import Counts
from modelwright.planner.shapes import FeedForward, GroupedAttention, Layer, Linear
from modelwright.planner.stored import ModuleNames

NAMES = ModuleNames(
    layer="transformer.h.{layer}",
    attention="attn",
    others={
        **{f"attention.{name}_proj": ("c_attn",) for name in "qkv"},
        "attention.o_proj": ("c_proj",),
        "dense.up_proj": ("c_fc",),
        "dense.down_proj": ("c_proj",),
    },
)
"""GPT-2's names of its matrices."""


def count_imagegpt(config: ImageGPTConfig) -> Counts:
    """The decoder with its head over colours, which is one narrower than the vocabulary."""
    dim, heads = config.n_embd, config.n_head
    attention = GroupedAttention(dim, heads, heads, config.head_dim, qkv_bias=True, out_bias=True)
    how = Computing(
        kept_by_activation=kept_by_activation(config.activation_function),
        merged_and_cached=config.use_cache,
        attention_dropout=config.attn_pdrop > 0,
        residual_dropout=config.resid_pdrop > 0,
        embedding_dropout=config.embd_pdrop > 0,
    )
    feed_forward = FeedForward(dim, config.inner_width, gated=False, bias=True)
    layer = Layer(attention, feed_forward, norms=2 * dim, computing=how)
    return Counts(
        model_type=config.model_type,
        dim=dim,
        vocab=config.vocab_size,
        positions=config.n_positions,
        layers=(layer,) * config.n_layer,
        final_norm=dim,
        head=Linear(dim, config.vocab_size - 1, cut="outputs"),
        tied=config.tie_word_embeddings,
        names=NAMES,
    )
