"""Llama (arXiv:2302.13971, 2407.21783) in both dialects: the decoder, and its heads for language and classification.

Leaves out the layers (``llama_parts.py``), the loss (``language_loss.py``), how tensors are named and read from disk
(``pretrained.py``) and where keys and values live (``attention``).
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache

from modelwright.attention import AttentionBackend, DenseAttention, PackedAttention
from modelwright.checkpoints.shards import read_headers
from modelwright.errors import CheckpointError
from modelwright.families.llama.balance import llama_balance_loss
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.loss import language_loss
from modelwright.families.llama.padding import packed_documents, padding_mask, position_ids_of
from modelwright.families.llama.parts import LlamaDecoderLayer, Types, build_norm, build_rope
from modelwright.hf.arguments import check_mask, refuse_attentions, refuse_unknown
from modelwright.hf.balance import accumulate_load
from modelwright.hf.cache_names import either_cache_name, of_cache
from modelwright.hf.classification import TextClassifier
from modelwright.hf.decoder import RouterBiases, check_kept, embed, kept_tokens, pass_cache, with_balance
from modelwright.hf.generation import EitherNameGenerationMixin
from modelwright.hf.outputs import CausalOutput, DecoderOutput
from modelwright.hf.pretrained import ModelwrightPreTrainedModel
from modelwright.layers import Router, Routing, column_linear
from modelwright.ops.packing import documents_of, positions_in_documents


class LlamaPreTrainedModel(RouterBiases, ModelwrightPreTrainedModel):
    """What the Llama classes share: their config, the types of their weights, and the router's bias rule."""

    config_class = LlamaConfig
    config: LlamaConfig
    base_model_prefix = "model"
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer"]

    def router_bias_rate(self) -> float:
        return self.config.moe_config.topk_bias_update_rate

    def stored_types(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """As built: the config, which ``dtype=`` of ``from_pretrained`` goes through, names several."""
        state = self.state_dict()
        return {name: state[place.parameter].dtype for name, place in self.places().items()}

    def weight_dtype(self) -> torch.dtype:
        """The type of the projections, which embedding and norms need not share, or were rounded from."""
        projections = (p.dtype for name, p in self.named_parameters() if name.endswith("o_proj.weight"))
        return next(projections, getattr(torch, self.config.param_init_type))

    def cache_dtype(self) -> torch.dtype:
        return Types.of(self.config).compute or self.weight_dtype()

    def load_named_checkpoint(self) -> None:
        """Read the folder that ``checkpoint_name_or_path`` names; a model on the meta device has nothing to fill."""
        named = self.config.checkpoint_name_or_path
        if not named or any(parameter.is_meta for parameter in self.parameters()):
            return
        if not Path(named).is_dir():
            raise CheckpointError(f'checkpoint_name_or_path "{named}" must name an existing folder, and it does not')
        found = read_headers(Path(named))
        source = self.source_of(found)
        self.load_state_dict(self._read(source.match(found), self.weight_dtype(), None, source), strict=False)
        self.tie_weights()


class LlamaModel(LlamaPreTrainedModel):
    """The decoder without a head: token ids or embeddings to normed hidden states ``[batch, tokens, hidden]``.

    A model that holds it loads ``checkpoint_name_or_path`` itself and says so with ``named_checkpoint=False``.
    """

    unused_tensors = (*LlamaPreTrainedModel.unused_tensors, r"^(lm_head|score)\.weight$")

    def __init__(self, config: LlamaConfig, named_checkpoint: bool = True):
        super().__init__(config)
        self.types = Types.of(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.rotary = build_rope(config)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = build_norm(config)
        for part in (self.embed_tokens, self.norm):
            self.types.store(part)
        self.post_init()
        if named_checkpoint:
            self.load_named_checkpoint()

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
            attention_mask: ``[batch, past + tokens]`` with 0 at padding, or 4-D: see :class:`DenseAttention`. Without
                one, tokens that are ``pad_token_id`` are padding.
            position_ids: ``[batch, tokens]``; by default counted from the past, padding included.
            cache: a transformers cache of rotated keys and values.
            attention: a backend to use instead of the one built from the mask, the documents and the cache.

        Raises:
            RequestError: the arguments contradict each other or the config, or attention weights are asked for.
            TypeError: an argument that is not known here.
        """
        refuse_unknown(extras, type(self))
        refuse_attentions(self.config, output_attentions)
        x = embed(self.embed_tokens, input_ids, inputs_embeds)
        x = x if self.types.compute is None else x.to(self.types.compute)
        batch, tokens, _ = x.shape
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache = pass_cache(cache, use_cache, attention, self.layers)
        past = int(cache.get_seq_length()) if cache is not None else 0
        check_mask(attention_mask, batch, past, tokens)
        documents = packed_documents(self.config, input_ids, past)
        if position_ids is None:
            position_ids = position_ids_of(self.config, documents, batch, tokens, past, x.device)
        if attention is None:
            mask = padding_mask(self.config, attention_mask, input_ids, past)
            attention = self._backend(mask, documents, cache, past)
        rope = self.rotary(position_ids.expand(batch, -1))
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        x, hidden, routings = self._run(x, rope, attention, bool(keep))
        result = DecoderOutput(
            last_hidden_state=x,
            **of_cache(cache),
            hidden_states=(*hidden, x) if keep else None,
            aux_loss=llama_balance_loss(self.config, routings) if self.training else None,
        )
        return result if self._wants_dict(return_dict) else result.to_tuple()

    def _run(
        self, x: Tensor, rope: Any, attention: AttentionBackend, keep: bool
    ) -> tuple[Tensor, tuple[Tensor, ...], list[Routing]]:
        """The normed result, the layers' inputs if they are to be kept, and what the routers decided."""
        shape, hidden, routings = x.shape, (), []
        if self.config.rmsnorm_compute_2d:
            x = x.flatten(0, 1)  # [batch * tokens, dim]
        for layer in self.layers:
            hidden += (x.view(shape),) if keep else ()
            x, *routed = layer(x, rope, attention)
            routings += [Routing(*routed)] if routed else []
        if self.training:
            accumulate_load((part for part in self.layers.modules() if isinstance(part, Router)), routings)
        return self.norm(x).view(shape), hidden, routings

    def _backend(
        self, mask: Tensor | None, documents: Tensor | None, cache: Cache | None, past: int
    ) -> AttentionBackend:
        """Packed attention over documents, unless a 4-D mask is the whole rule; dense attention otherwise."""
        fused = self.config.use_flash_attention and self.config._attn_implementation != "eager"
        how = {"fused": fused, "softmax_dtype": self.types.softmax}
        if documents is not None and (mask is None or mask.dim() == 2):
            return PackedAttention(documents, mask, cache, past, **how)
        return DenseAttention(mask, cache, past, **how)


class LlamaForCausalLM(LlamaPreTrainedModel, EitherNameGenerationMixin):
    """The decoder with a language-model head."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.model = LlamaModel(config, named_checkpoint=False)
        types = self.model.types
        vocabulary, slices = config.vocab_size, config.pretraining_tp
        self.lm_head = column_linear(config.hidden_size, vocabulary, slices=slices, compute=types.compute)
        types.store(self.lm_head)
        self.post_init()
        self.load_named_checkpoint()

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether transformers' ``Trainer`` should pass ``num_items_in_batch``; otherwise it averages micro-batches."""
        return self.config.calculate_per_token_loss

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
        """As :meth:`LlamaModel.forward`, with logits.

        Args:
            labels: ``[batch, tokens]``; see :func:`language_loss` for what is shifted, masked and averaged.
            logits_to_keep: compute logits of the last n tokens (0: all), or of the token indices given.
            num_items_in_batch: counted labels of all ranks and micro-batches, for ``calculate_per_token_loss``.

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
            items = num_items_in_batch if self.config.calculate_per_token_loss else None
            loss, counted = language_loss(logits, labels, input_ids, self.config.training, items)
            loss, aux_loss = with_balance(loss, aux_loss, counted, items)
        result = CausalOutput(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            **of_cache(outputs.cache),
            hidden_states=outputs.hidden_states,
            last_hidden_state=outputs.last_hidden_state if self.config.return_hidden_states else None,
        )
        return result if self._wants_dict(return_dict) else result.to_tuple()

    @either_cache_name
    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs,
    ) -> dict[str, Any]:
        """As transformers', with the earlier documents of a packed prompt hidden from the new tokens."""
        if self.config.use_eod_attn_mask_compression:
            documents = documents_of(input_ids, self.config.eos_token_ids)
            if self.config.reset_position_ids:
                kwargs["position_ids"] = positions_in_documents(documents)
            if cache is not None and cache.get_seq_length():
                own = documents == documents[:, -1:]
                attention_mask = own.long() if attention_mask is None else attention_mask * own
        return super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids, attention_mask=attention_mask, **of_cache(cache), **kwargs
        )


class LlamaForSequenceClassification(LlamaPreTrainedModel, TextClassifier):
    """The decoder with ``num_labels`` scores read at each row's last token that is not padding."""

    unused_tensors = (*LlamaPreTrainedModel.unused_tensors, r"^lm_head\.weight$")

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.model = LlamaModel(config, named_checkpoint=False)
        self.score = column_linear(config.hidden_size, self.num_labels, compute=self.model.types.compute)
        self.model.types.store(self.score)
        self.post_init()
        self.load_named_checkpoint()
