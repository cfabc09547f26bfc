"""Llama's parts as its config asks for them: types, decoder layer, attention, feed-forward, experts and rotation.

Leaves out the model around them (``model.py``).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelwright.attention import AttentionBackend
from modelwright.families.llama.config import LlamaConfig
from modelwright.layers import (
    Experts,
    GatedMLP,
    GroupedQueryAttention,
    MoE,
    RMSNorm,
    RotaryEmbedding,
    Rotation,
    Router,
    column_linear,
    wanted,
)
from modelwright.layers.activations import activation
from modelwright.layers.checkpointed import CheckpointedLayer

MIXTRAL_NAMES = ("w1", "w3", "w2")  # what Hugging Face calls an expert's gate, up and down projections


@dataclass(frozen=True)
class Types:
    """The types of a config's dtype fields; ``compute`` and ``residual`` are None where they follow from the others.

    ``compute`` follows the weights where all of them are stored in it, so that the model can be moved to another type;
    ``residual`` follows ``compute`` where they are the same.
    """

    stored: torch.dtype
    embedding: torch.dtype
    norm: torch.dtype
    router: torch.dtype
    softmax: torch.dtype
    rotary: torch.dtype
    compute: torch.dtype | None
    residual: torch.dtype | None

    @classmethod
    def of(cls, config: LlamaConfig) -> "Types":
        """Read the names in ``config``."""
        compute, stored, embedding = config.compute_dtype, config.param_init_type, config.embedding_dtype
        residual = config.residual_dtype_name
        return cls(
            stored=getattr(torch, stored),
            embedding=getattr(torch, embedding),
            norm=getattr(torch, config.norm_dtype),
            router=getattr(torch, config.moe_config.router_dense_type),
            softmax=getattr(torch, config.softmax_compute_type),
            rotary=getattr(torch, config.rotary_dtype),
            compute=None if compute == stored == embedding else getattr(torch, compute),
            residual=None if residual == compute else getattr(torch, residual),
        )

    def store(self, module: nn.Module) -> None:
        """Keep each parameter of ``module`` in the type that its part is stored in."""
        kinds = {RMSNorm: self.norm, Router: self.router, nn.Embedding: self.embedding}
        for part in module.modules():
            for parameter in part.parameters(recurse=False):
                parameter.data = parameter.data.to(kinds.get(type(part), self.stored))


class LlamaDecoderLayer(CheckpointedLayer):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``: ``[batch, tokens, dim]`` to the same.

    With ``rmsnorm_compute_2d`` attention alone sees the rows of the batch. A layer with experts also returns its
    routing's weights, choices, scores and logits (see :func:`run_stack`). With ``only``, the result is that of the
    tokens at these indices.
    """

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        types = Types.of(config)
        self.residual, self.flat = types.residual, config.rmsnorm_compute_2d
        self.self_attn = build_attention(config, layer)
        self.mlp = None if config.has_experts else build_mlp(config, config.intermediate_size, config.qkv_concat)
        self.block_sparse_moe = build_moe(config) if config.has_experts else None
        self.input_layernorm = build_norm(config)
        self.post_attention_layernorm = build_norm(config)
        types.store(self)

    def forward(
        self, x: Tensor, rope: Rotation, attention: AttentionBackend, only: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        normed = self.input_layernorm(self._rows(x)).view(x.shape)
        x = wanted(self._add(x, self.self_attn(normed, rope, attention)), only)
        shape, x = x.shape, self._rows(x)
        normed = self.post_attention_layernorm(x)
        feed_forward = self.mlp if self.block_sparse_moe is None else self.block_sparse_moe
        assert feed_forward is not None
        if not isinstance(feed_forward, MoE):
            return self._add(x, feed_forward(normed)).view(shape)
        routing = feed_forward.route(normed)
        x = self._add(x, feed_forward(normed, routing)).view(shape)
        return x, routing.weights, routing.chosen, routing.scores, routing.logits

    def _rows(self, x: Tensor) -> Tensor:
        """``[batch * tokens, dim]`` where norms and the feed-forward are to see that."""
        return x.flatten(0, 1) if self.flat else x

    def _add(self, x: Tensor, update: Tensor) -> Tensor:
        if self.residual is None:
            return x + update
        return (x.to(self.residual) + update.to(self.residual)).to(x.dtype)


def build_norm(config: LlamaConfig) -> RMSNorm:
    """A norm in the config's type and order."""
    compute = getattr(torch, config.layernorm_compute_type)
    return RMSNorm(config.hidden_size, config.rms_norm_eps, config.fused_rms_norm, compute)


def build_attention(config: LlamaConfig, layer: int) -> GroupedQueryAttention:
    """Attention with the config's heads and biases, its projections apart or grouped by key head."""
    return GroupedQueryAttention(
        layer,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        bias=config.qkv_has_bias,
        out_bias=config.attn_proj_has_bias,
        dropout=config.attention_dropout,
        fused=config.qkv_concat,
        grouped=config.qkv_concat,
        slices=config.pretraining_tp,
        compute=Types.of(config).compute,
    )


def build_mlp(config: LlamaConfig, hidden: int, fused: bool = False) -> GatedMLP:
    """A dense feed-forward ``hidden`` wide."""
    act, slices = activation(config.hidden_act), config.pretraining_tp
    return GatedMLP(config.hidden_size, hidden, act, slices=slices, fused=fused, compute=Types.of(config).compute)


def build_moe(config: LlamaConfig) -> MoE:
    """Router, routed experts as wide as ``intermediate_size``, and shared experts as one feed-forward."""
    moe, types = config.moe_config, Types.of(config)
    experts = Experts(
        moe.expert_num,
        config.hidden_size,
        config.intermediate_size,
        activation(config.hidden_act),
        names=MIXTRAL_NAMES,
        compute=types.compute,
    )
    width = config.intermediate_size * moe.shared_expert_num
    gated = width > 0 and moe.use_shared_expert_gating
    return MoE(
        build_router(config),
        experts,
        build_mlp(config, width) if width else None,
        shared_gate=column_linear(config.hidden_size, 1, compute=types.compute) if gated else None,
    )


def build_router(config: LlamaConfig) -> Router:
    """The router of ``moe_config``; a bias steers it with ``noaux_tc``, and with ``balance_via_topk_bias`` any method.

    ``routing_policy`` names generations of MindFormers' code, not rules. Tokens beyond an expert's capacity are dropped
    in training only, and not with ``use_gmm``.
    """
    moe = config.moe_config
    grouped = moe.topk_method != "greedy"
    bounded = moe.capacity_factor > 0 and not moe.use_gmm
    return Router(
        config.hidden_size,
        moe.expert_num,
        moe.num_experts_chosen,
        method="noaux_tc" if moe.balance_via_topk_bias else moe.topk_method,
        scoring="sigmoid" if moe.use_gating_sigmoid else "softmax",
        groups=(moe.n_group or 1) if grouped else 1,
        top_groups=(moe.topk_group or 1) if grouped else 1,
        normalise=moe.norm_topk_prob,
        scaling=moe.routed_scaling_factor,
        compute=Types.of(config).router,
        capacity=moe.capacity_factor if bounded else None,
        drop_by_token=moe.enable_sdrop,
        bias_on_disk=moe.balance_via_topk_bias,
    )


def build_rope(config: LlamaConfig) -> RotaryEmbedding:
    """The config's rotary embedding: split halves, turned by slices or by a matrix."""
    rope, by_matrix = config.rope, not config.use_rope_slice
    dtype = Types.of(config).rotary
    return RotaryEmbedding(rope.dim, rope.theta, dtype=dtype, by_matrix=by_matrix, **rope.extension)
