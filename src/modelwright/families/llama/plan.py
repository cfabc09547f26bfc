"""Llama's sizes from its config: grouped attention, a gated feed-forward or experts of the same width."""

from modelwright.families.llama.config import LlamaConfig
from modelwright.planner.counts import Counts
from modelwright.planner.shapes import ExpertFeedForward, FeedForward, GroupedAttention, Layer, Linear


def count_llama(config: LlamaConfig) -> Counts:
    """The decoder with its language-model head; projections count the same fused and apart."""
    attention = GroupedAttention(
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        qkv_bias=config.qkv_has_bias,
        out_bias=config.attn_proj_has_bias,
        turned_by_matrix=not config.use_rope_slice,
    )
    feed_forward = _experts(config) if config.has_experts else _feed_forward(config)
    layer = Layer(attention, feed_forward, norms=2 * config.hidden_size)
    return Counts(
        model_type=config.model_type,
        dim=config.hidden_size,
        vocab=config.vocab_size,
        layers=(layer,) * config.num_hidden_layers,
        final_norm=config.hidden_size,
        head=Linear(config.hidden_size, config.vocab_size, cut="outputs"),
        tied=config.tie_word_embeddings,
    )


def _feed_forward(config: LlamaConfig, times: int = 1) -> FeedForward:
    """The config's feed-forward, `times` as wide."""
    return FeedForward(config.hidden_size, times * config.intermediate_size)


def _experts(config: LlamaConfig) -> ExpertFeedForward:
    moe, dim = config.moe_config, config.hidden_size
    shared = _feed_forward(config, moe.shared_expert_num) if moe.shared_expert_num else None
    return ExpertFeedForward(
        experts=moe.expert_num,
        chosen=moe.num_experts_chosen,
        expert=_feed_forward(config),
        router=Linear(dim, moe.expert_num),
        shared=shared,
        shared_gate=Linear(dim, 1) if shared and moe.use_shared_expert_gating else None,
    )
