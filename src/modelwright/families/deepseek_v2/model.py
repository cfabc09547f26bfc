"""DeepSeek-V2 (arXiv:2405.04434): the decoder, and its heads for language modelling and sequence classification.

Leaves out the layers (``deepseek_v2_parts.py``), how tensors are named and read from disk (``pretrained.py``) and where
keys and values live (``attention``).
"""

from typing import ClassVar

from torch import Tensor, nn
from transformers import Cache

from modelwright.attention import AttentionBackend, DenseAttention
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.parts import DecoderLayer, build_rope
from modelwright.hf.arguments import check_mask, positions_from_mask, refuse_attentions, refuse_unknown
from modelwright.hf.balance import accumulate_load, balance_loss
from modelwright.hf.cache_names import either_cache_name, of_cache
from modelwright.hf.classification import TextClassifier
from modelwright.hf.decoder import (
    RouterBiases,
    check_expert_ranks,
    check_kept,
    embed,
    kept_tokens,
    pass_cache,
    with_balance,
)
from modelwright.hf.generation import EitherNameGenerationMixin
from modelwright.hf.outputs import CausalOutput, DecoderOutput
from modelwright.hf.pretrained import ModelwrightPreTrainedModel
from modelwright.layers import Linear, MoE, RMSNorm, Routing, column_linear


class DeepseekV2PreTrainedModel(RouterBiases, ModelwrightPreTrainedModel):
    """What the DeepSeek-V2 classes share: their config and the router's bias rule."""

    config_class = DeepseekV2Config
    base_model_prefix = "model"
    _no_split_modules: ClassVar[list[str]] = ["DecoderLayer"]

    def __init__(self, config, *args, **kwargs):
        check_expert_ranks(config.get_text_config().ep_size)
        super().__init__(config, *args, **kwargs)

    def router_bias_rate(self) -> float:
        return self.config.get_text_config().topk_bias_update_rate


class DeepseekV2Model(DeepseekV2PreTrainedModel):
    """The decoder without a head: token ids or embeddings to normed hidden states ``[batch, tokens, hidden]``."""

    config: DeepseekV2Config
    unused_tensors = (*DeepseekV2PreTrainedModel.unused_tensors, r"^(lm_head|score)\.weight$")

    def __init__(self, config: DeepseekV2Config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.rotary = build_rope(config)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, self.rotary.softmax_gain) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    @either_cache_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        attention: AttentionBackend | None = None,
        **extras,
    ) -> DecoderOutput | tuple:
        """One pass.

        Args:
            input_ids: ``[batch, tokens]``, or ``inputs_embeds`` ``[batch, tokens, hidden]``; one of the two.
            attention_mask: ``[batch, past + tokens]`` with 0 at padding, or 4-D: see :class:`DenseAttention`.
            position_ids: ``[batch, tokens]``; by default padding is not counted.
            cache: a transformers cache; for latent attention it holds rotated keys and latents.
            attention: a backend to use instead of the dense one built from the mask and the cache.

        Raises:
            RequestError: the arguments contradict each other, or attention weights are asked for.
            TypeError: an argument that is not known here.
        """
        refuse_unknown(extras, type(self))
        refuse_attentions(self.config, output_attentions)
        x = embed(self.embed_tokens, input_ids, inputs_embeds)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache = pass_cache(cache, use_cache, attention, self.layers)
        past = int(cache.get_seq_length()) if cache is not None else 0
        check_mask(attention_mask, x.shape[0], past, x.shape[1])
        if position_ids is None:
            position_ids = positions_from_mask(attention_mask, x.shape[0], x.shape[1], past, x.device)
        if attention is None:
            fused = self.config._attn_implementation != "eager"
            attention = DenseAttention(attention_mask, cache, past, fused=fused)
        rope = self.rotary(position_ids)

        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden: tuple[Tensor, ...] = ()
        routings: list[Routing] = []
        for layer in self.layers:
            hidden += (x,) if keep else ()
            x, *routed = layer(x, rope, attention)
            routings += [Routing(*routed)] if routed else []
        x = self.norm(x)
        if self.training:
            accumulate_load((layer.mlp.gate for layer in self.layers if isinstance(layer.mlp, MoE)), routings)
        result = DecoderOutput(
            last_hidden_state=x,
            **of_cache(cache),
            hidden_states=(*hidden, x) if keep else None,
            aux_loss=self._balance_loss(routings, len(x)) if self.training else None,
        )
        return result if self._wants_dict(return_dict) else result.to_tuple()

    def _balance_loss(self, routings: list[Routing], batch: int) -> Tensor | None:
        return balance_loss(routings, batch, self.config.aux_loss_alpha, self.config.seq_aux)


class DeepseekV2ForCausalLM(DeepseekV2PreTrainedModel, EitherNameGenerationMixin):
    """The decoder with a language-model head."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: DeepseekV2Config):
        super().__init__(config)
        self.model = DeepseekV2Model(config)
        self.lm_head = column_linear(config.hidden_size, config.vocab_size, slices=config.pretraining_tp)
        self.post_init()

    @either_cache_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CausalOutput | tuple:
        """As :meth:`DeepseekV2Model.forward`, with logits.

        Args:
            labels: ``[batch, tokens]``, -100 where nothing is learned; shifted inside.
            logits_to_keep: compute logits of the last n tokens (0: all), or of the token indices given.
            num_items_in_batch: counted labels of the whole accumulation; the loss is then a sum divided by it.

        Returns:
            ``loss`` is what to backpropagate; ``aux_loss`` is its balance part, so ``loss - aux_loss`` is the
            language-model loss.
        """
        check_kept(labels, logits_to_keep)
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            cache,
            inputs_embeds,
            use_cache,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(kept_tokens(outputs.last_hidden_state, logits_to_keep))
        loss, aux_loss = None, outputs.aux_loss
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch)
            counted = (labels[:, 1:] != -100).sum()
            loss, aux_loss = with_balance(loss, aux_loss, counted, num_items_in_batch)
        result = CausalOutput(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            **of_cache(outputs.cache),
            hidden_states=outputs.hidden_states,
        )
        return result if self._wants_dict(return_dict) else result.to_tuple()


class DeepseekV2ForSequenceClassification(DeepseekV2PreTrainedModel, TextClassifier):
    """The decoder with ``num_labels`` scores read at each row's last token that is not padding."""

    unused_tensors = (*DeepseekV2PreTrainedModel.unused_tensors, r"^lm_head\.weight$")

    def __init__(self, config: DeepseekV2Config):
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.model = DeepseekV2Model(config)
        self.score = Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()
