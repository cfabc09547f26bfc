"""DeepSeek-V2 (arXiv:2405.04434): the decoder, and its heads for language modelling and sequence classification.

Leaves out how tensors are named and read from disk (``pretrained.py``) and where keys and values live (``attention``).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    MoeCausalLMOutputWithPast,
    MoeModelOutputWithPast,
    SequenceClassifierOutputWithPast,
)

from modelwright.attention import AttentionBackend, DenseAttention
from modelwright.configs import DeepseekV2Config
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
    Routing,
    column_linear,
)
from modelwright.models.balance import accumulate_load, balance_loss, move_bias
from modelwright.models.positions import positions_from_mask
from modelwright.models.pretrained import ModelwrightPreTrainedModel


@dataclass
class DeepseekV2ModelOutput(MoeModelOutputWithPast):
    """The decoder's output; ``aux_loss`` is the scaled balance loss of a training pass, otherwise None."""

    aux_loss: Tensor | None = None


@dataclass
class DeepseekV2ClassifierOutput(SequenceClassifierOutputWithPast):
    """Class scores; ``aux_loss`` is the balance part of ``loss``."""

    aux_loss: Tensor | None = None


class DecoderLayer(GradientCheckpointingLayer):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``: ``[batch, tokens, dim]`` to the same and the routing."""

    def __init__(self, config: DeepseekV2Config, layer: int, softmax_gain: float):
        super().__init__()
        self.self_attn = build_attention(config, layer, softmax_gain)
        self.mlp = build_moe(config) if config.is_moe_layer(layer) else build_mlp(config, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Rotation, attention: AttentionBackend) -> tuple[Tensor, Routing | None]:
        x = x + self.self_attn(self.input_layernorm(x), rope, attention)
        update, routing = self._feed_forward(self.post_attention_layernorm(x))
        return x + update, routing

    def _feed_forward(self, x: Tensor) -> tuple[Tensor, Routing | None]:
        return self.mlp(x) if isinstance(self.mlp, MoE) else (self.mlp(x), None)


class DeepseekV2PreTrainedModel(ModelwrightPreTrainedModel):
    """What the DeepSeek-V2 classes share: their config, their initialisation, the router's bias rule."""

    config_class = DeepseekV2Config
    base_model_prefix = "model"

    def update_router_bias(self) -> None:
        """Move every ``noaux_tc`` bias by ``topk_bias_update_rate * sign(mean load - load)`` and forget the loads.

        Call it once per optimizer step (or let :meth:`update_router_bias_with` do so): loads are summed over the
        training passes since the last call and over the ranks of the default process group.
        """
        for layer in self.modules():
            if isinstance(layer, Router) and layer.method == "noaux_tc":
                move_bias(layer, self.config.get_text_config().topk_bias_update_rate)

    def update_router_bias_with(self, optimizer: torch.optim.Optimizer) -> torch.utils.hooks.RemovableHandle:
        """Run :meth:`update_router_bias` after each ``optimizer.step()``; the handle removes the hook."""
        return optimizer.register_step_post_hook(lambda *_: self.update_router_bias())


class DeepseekV2Model(DeepseekV2PreTrainedModel):
    """The decoder without a head: token ids or embeddings to normed hidden states ``[batch, tokens, hidden]``."""

    def __init__(self, config: DeepseekV2Config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.rotary = build_rope(config)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, self.rotary.softmax_gain) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        attention: AttentionBackend | None = None,
        **kwargs,
    ) -> DeepseekV2ModelOutput:
        """One pass.

        Args:
            input_ids: ``[batch, tokens]``, or ``inputs_embeds`` ``[batch, tokens, hidden]``; one of the two.
            attention_mask: ``[batch, past + tokens]`` with 0 at padding, or 4-D: see :class:`DenseAttention`.
            position_ids: ``[batch, tokens]``; by default padding is not counted.
            past_key_values: a transformers cache; for latent attention it holds rotated keys and latents.
            attention: a backend to use instead of the dense one built from the mask and the cache.
        """
        x = self._embed(input_ids, inputs_embeds)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.training and any(layer.gradient_checkpointing for layer in self.layers):
            use_cache, past_key_values = False, None  # recomputed layers would append to the cache again
        if use_cache and past_key_values is None and attention is None:
            past_key_values = DynamicCache()
        past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        if position_ids is None:
            position_ids = positions_from_mask(attention_mask, x.shape[0], x.shape[1], past, x.device)
        if attention is None:
            fused = self.config._attn_implementation != "eager"
            attention = DenseAttention(attention_mask, past_key_values, past, fused=fused)
        rope = self.rotary(position_ids)

        hidden: list[Tensor] = []
        routings: list[Routing] = []
        for layer in self.layers:
            hidden.append(x)
            x, routing = layer(x, rope, attention)
            routings += [] if routing is None else [routing]
        x = self.norm(x)
        if self.training:
            accumulate_load(self.layers, routings)
        return DeepseekV2ModelOutput(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*hidden, x) if self._wants_hidden(output_hidden_states) else None,
            aux_loss=balance_loss(self.config, routings, len(x)) if self.training else None,
        )

    def _wants_hidden(self, output_hidden_states: bool | None) -> bool:
        return self.config.output_hidden_states if output_hidden_states is None else output_hidden_states

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, and not both")
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds


class DeepseekV2ForCausalLM(DeepseekV2PreTrainedModel, GenerationMixin):
    """The decoder with a language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: DeepseekV2Config):
        super().__init__(config)
        self.model = DeepseekV2Model(config)
        self.lm_head = column_linear(config.hidden_size, config.vocab_size, slices=config.pretraining_tp)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> MoeCausalLMOutputWithPast | tuple:
        """As :meth:`DeepseekV2Model.forward`, with logits.

        Args:
            labels: ``[batch, tokens]``, -100 where nothing is learned; shifted inside.
            logits_to_keep: compute logits of the last n tokens (0: all), or of the token indices given.
            num_items_in_batch: counted labels of the whole accumulation; the loss is then a sum divided by it.

        Returns:
            ``loss`` is what to backpropagate; ``aux_loss`` is its balance part, so ``loss - aux_loss`` is the
            language-model loss.
        """
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss, aux_loss = None, outputs.aux_loss
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch)
            loss, aux_loss = _with_balance(loss, aux_loss, labels, num_items_in_batch)
        result = MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
        return result if self._wants_dict(return_dict) else result.to_tuple()


class DeepseekV2ForSequenceClassification(DeepseekV2PreTrainedModel):
    """The decoder with ``num_labels`` scores read at each row's last token that is not padding."""

    def __init__(self, config: DeepseekV2Config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = DeepseekV2Model(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> DeepseekV2ClassifierOutput | tuple:
        """Scores ``[batch, num_labels]``; the loss follows ``config.problem_type`` as elsewhere in transformers."""
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs
        )
        last = self._last_tokens(input_ids, attention_mask, outputs.last_hidden_state)
        rows = torch.arange(len(last), device=last.device)
        logits = self.score(outputs.last_hidden_state[rows, last])
        loss, aux_loss = None, outputs.aux_loss
        if labels is not None:
            loss = self.loss_function(logits, labels, pooled_logits=logits, config=self.config)
            loss = loss if aux_loss is None else loss + aux_loss
        result = DeepseekV2ClassifierOutput(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
        return result if self._wants_dict(return_dict) else result.to_tuple()

    def _last_tokens(self, input_ids: Tensor | None, attention_mask: Tensor | None, hidden: Tensor) -> Tensor:
        """``[batch]`` indices; padding is known from the mask, else from the pad token, else there is none."""
        batch, tokens = hidden.shape[:2]
        real = torch.ones(batch, tokens, dtype=torch.bool, device=hidden.device)
        if attention_mask is not None and attention_mask.dim() == 2:
            real = attention_mask[:, -tokens:].bool()
        elif input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
        return (torch.arange(tokens, device=hidden.device) * real).argmax(dim=-1)


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
    act = ACT2FN[config.hidden_act]
    return kind(config.hidden_size, hidden, act, dropout=config.ffn_dropout, slices=config.pretraining_tp)


def build_moe(config: DeepseekV2Config) -> MoE:
    """Router, routed experts, and the shared experts as one feed-forward of their summed width."""
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
        ACT2FN[config.hidden_act],
        config.gated_mlp,
        config.ffn_dropout,
    )
    width = config.moe_intermediate_size * (config.n_shared_experts or 0)
    return MoE(gate, experts, build_mlp(config, width) if width else None)


def build_rope(config: DeepseekV2Config) -> RotaryEmbedding:
    """The config's rotary embedding: interleaved pairs for latent attention, split halves otherwise."""
    scaling = config.rope.scaling
    extension = (
        {}
        if scaling is None
        else {
            "kind": scaling.kind,
            "factor": scaling.factor,
            "trained_length": scaling.original_max_position_embeddings or config.max_position_embeddings,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "mscale": scaling.mscale,
            "mscale_all_dim": scaling.mscale_all_dim,
        }
    )
    return RotaryEmbedding(config.rope.dim, config.rope.theta, interleaved=config.use_mla, **extension)


def _with_balance(
    loss: Tensor, aux_loss: Tensor | None, labels: Tensor, num_items: Tensor | int | None
) -> tuple[Tensor, Tensor | None]:
    """The loss with its balance part; in a pass that is one of several, the part gets this pass's share of the labels."""
    if aux_loss is None:
        return loss, None
    if num_items is not None:
        counted = (F.pad(labels, (0, 1), value=-100)[..., 1:] != -100).sum()
        aux_loss = aux_loss * counted / num_items
    return loss + aux_loss, aux_loss
