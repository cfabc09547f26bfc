"""DeepSeek-V2's sizes from its config: latent or grouped attention, dense and expert layers."""

from dataclasses import replace

from modelwright.configs import CheckedConfig
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.planner.computing import Computing, kept_by_activation
from modelwright.planner.counts import Counts
from modelwright.planner.settings import RunSettings, plain_settings
from modelwright.planner.shapes import (
    ExpertFeedForward,
    FeedForward,
    GroupedAttention,
    LatentAttention,
    Layer,
    Linear,
)


def count_deepseek_v2(config: DeepseekV2Config) -> Counts:
    """The decoder with its language-model head."""
    return Counts(
        model_type=config.model_type,
        dim=config.hidden_size,
        vocab=config.vocab_size,
        layers=tuple(_layer(config, index) for index in range(config.num_hidden_layers)),
        final_norm=config.hidden_size,
        head=Linear(config.hidden_size, config.vocab_size, cut="outputs"),
        tied=config.tie_word_embeddings,
    )


def run_settings(config: CheckedConfig) -> RunSettings:
    """The type that the config states, and the expert parallelism of its language model."""
    ranks = getattr(config.get_text_config(), "ep_size", 1)
    return replace(plain_settings(config), expert_ranks=ranks if ranks > 1 else None)


def _layer(config: DeepseekV2Config, index: int) -> Layer:
    dense = FeedForward(config.hidden_size, config.intermediate_size, config.gated_mlp)
    feed_forward = _experts(config) if config.is_moe_layer(index) else dense
    how = Computing(
        kept_by_activation=kept_by_activation(config.hidden_act),
        attention_dropout=config.attention_dropout > 0,
        hidden_dropout=config.ffn_dropout > 0,
    )
    return Layer(_attention(config), feed_forward, norms=2 * config.hidden_size, computing=how)


def _attention(config: DeepseekV2Config) -> GroupedAttention | LatentAttention:
    bias = config.attention_bias
    if not config.use_mla:
        return GroupedAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            qkv_bias=bias,
            out_bias=bias,
        )
    return LatentAttention(
        config.hidden_size,
        config.num_attention_heads,
        nope=config.qk_nope_head_dim,
        rope=config.qk_rope_head_dim,
        v_dim=config.v_head_dim,
        kv_rank=config.kv_lora_rank or 0,
        q_rank=config.q_lora_rank,
        bias=bias,
    )


def _experts(config: DeepseekV2Config) -> ExpertFeedForward:
    dim, width, shared = config.hidden_size, config.moe_intermediate_size, config.n_shared_experts or 0
    experts = config.n_routed_experts or 0
    return ExpertFeedForward(
        experts=experts,
        chosen=config.num_experts_per_tok or 0,
        expert=FeedForward(dim, width, config.gated_mlp),
        router=Linear(dim, experts),
        shared=FeedForward(dim, shared * width, config.gated_mlp) if shared else None,
    )
