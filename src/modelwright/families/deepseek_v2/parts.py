"""DeepSeek-V2's parts as its config asks for them: decoder layer, attention, feed-forward, experts and rotation.

Leaves out the model around them (``model.py``).
"""

from torch import Tensor, nn

from modelwright.attention import AttentionBackend
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.layers import (
    Experts,
    GatedMLP,
    GroupedQueryAttention,
    LatentAttention,
    MoE,
    PlainMLP,
    RMSNorm,
    RotaryEmbedding,
    Rotation,
    Router,
    wanted,
)
from modelwright.layers.activations import activation
from modelwright.layers.checkpointed import CheckpointedLayer


class DecoderLayer(CheckpointedLayer):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``: ``[batch, tokens, dim]`` to the same.

    A layer with experts also returns its routing's weights, choices, scores and logits (see :func:`run_stack`). With
    ``only``, the result is that of the tokens at these indices.
    """

    def __init__(self, config: DeepseekV2Config, layer: int, softmax_gain: float):
        super().__init__()
        self.self_attn = build_attention(config, layer, softmax_gain)
        self.mlp = build_moe(config) if config.is_moe_layer(layer) else build_mlp(config, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: Rotation, attention: AttentionBackend, only: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        x = wanted(x + self.self_attn(self.input_layernorm(x), rope, attention), only)
        normed = self.post_attention_layernorm(x)
        if not isinstance(self.mlp, MoE):
            return x + self.mlp(normed)
        routing = self.mlp.route(normed)
        return x + self.mlp(normed, routing), routing.weights, routing.chosen, routing.scores, routing.logits


def build_attention(config: DeepseekV2Config, layer: int, softmax_gain: float) -> nn.Module:
    """The config's attention: latent, or Llama-style with ``use_mla=False``."""
    shared = {"bias": config.attention_bias, "dropout": config.attention_dropout, "slices": config.pretraining_tp}
    if not config.use_mla:
        return GroupedQueryAttention(
            layer,
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.hidden_size // config.num_attention_heads,
            fused=config.qkv_concat,
            **shared,
        )
    assert config.kv_lora_rank is not None  # a rule of the config
    return LatentAttention(
        layer,
        config.hidden_size,
        config.num_attention_heads,
        nope=config.qk_nope_head_dim,
        rope=config.qk_rope_head_dim,
        v_dim=config.v_head_dim,
        kv_rank=config.kv_lora_rank,
        q_rank=config.q_lora_rank,
        softmax_gain=softmax_gain,
        **shared,
    )


def build_mlp(config: DeepseekV2Config, hidden: int) -> GatedMLP | PlainMLP:
    """A dense feed-forward of the config's kind."""
    kind = GatedMLP if config.gated_mlp else PlainMLP
    act = activation(config.hidden_act)
    return kind(config.hidden_size, hidden, act, dropout=config.ffn_dropout, slices=config.pretraining_tp)


def build_moe(config: DeepseekV2Config) -> MoE:
    """Router, routed experts, and the shared experts as one feed-forward of their summed width."""
    assert config.n_routed_experts is not None and config.num_experts_per_tok is not None  # rules of the config
    gate = Router(
        config.hidden_size,
        config.n_routed_experts,
        config.num_experts_per_tok,
        config.topk_method,
        config.scoring_func,
        config.n_group or 1,
        config.topk_group or 1,
        config.norm_topk_prob,
        config.routed_scaling_factor,
    )
    experts = Experts(
        config.n_routed_experts,
        config.hidden_size,
        config.moe_intermediate_size,
        activation(config.hidden_act),
        config.gated_mlp,
        config.ffn_dropout,
    )
    width = config.moe_intermediate_size * (config.n_shared_experts or 0)
    return MoE(gate, experts, build_mlp(config, width) if width else None)


def build_rope(config: DeepseekV2Config) -> RotaryEmbedding:
    """The config's rotary embedding: interleaved pairs for latent attention, split halves otherwise."""
    rope = config.rope
    return RotaryEmbedding(rope.dim, rope.theta, interleaved=config.use_mla, **rope.extension)
