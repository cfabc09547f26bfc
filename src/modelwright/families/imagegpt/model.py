"""ImageGPT (Chen et al., "Generative Pretraining from Pixels", ICML 2020): the decoder and its two heads.

Leaves out the blocks and the loss (``imagegpt_parts.py``), pictures (``processing``), how tensors are named and read
from disk (``pretrained.py``) and where keys and values live (``attention``).
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, Conv1D
from transformers import initialization as init

from modelwright.attention import AttentionBackend, DenseAttention
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.parts import (
    ColourHead,
    ImageGPTBlock,
    ResidualProjection,
    build_norm,
    check_positions,
    check_range,
    colour_loss,
)
from modelwright.hf.arguments import check_mask, refuse_attentions, refuse_unknown
from modelwright.hf.cache_names import either_cache_name, of_cache
from modelwright.hf.decoder import check_kept, embed, kept_tokens, pass_cache
from modelwright.hf.generation import EitherNameGenerationMixin
from modelwright.hf.outputs import CausalOutput, ClassifierOutput, DecoderOutput
from modelwright.hf.pretrained import ModelwrightPreTrainedModel


class ImageGPTPreTrainedModel(ModelwrightPreTrainedModel):
    """What the ImageGPT classes share: their config, their first weights, and the masks that old files hold."""

    config_class = ImageGPTConfig
    config: ImageGPTConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    input_modalities = ["image"]
    _no_split_modules: ClassVar[list[str]] = ["ImageGPTBlock"]

    unused_tensors = (r"(^|\.)h\.\d+\.attn\.(bias|masked_bias)$",)
    own_matrices = (ResidualProjection, ColourHead)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the base; what is added to the residual starts smaller by ``sqrt(2 * n_layer)``, the number of additions.

        GPT-2's scheme (Radford et al., 2019, section 2.3). transformers calls this for modules with parameters of
        their own only.
        """
        super()._init_weights(module)
        if isinstance(module, Conv1D):
            shrink = math.sqrt(2 * self.config.n_layer) if isinstance(module, ResidualProjection) else 1.0
            init.normal_(module.weight, std=self.config.initializer_range / shrink)
            init.zeros_(module.bias)


class ImageGPTModel(ImageGPTPreTrainedModel):
    """The decoder without a head: colour tokens or embeddings to normed hidden states ``[batch, tokens, n_embd]``."""

    unused_tensors = (*ImageGPTPreTrainedModel.unused_tensors, r"^(lm_head|score)\.weight$")

    def __init__(self, config: ImageGPTConfig):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(ImageGPTBlock(config, layer) for layer in range(config.n_layer))
        self.ln_f = build_norm(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.wte = value

    @either_cache_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
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
            input_ids: ``[batch, tokens]``, or ``inputs_embeds`` ``[batch, tokens, n_embd]``; one of the two.
            cache: a transformers cache of keys and values.
            attention_mask: ``[batch, past + tokens]`` with 0 at padding, or 4-D: see :class:`DenseAttention`.
            token_type_ids: ``[batch, tokens]`` in the vocabulary; their embeddings are added, as transformers does.
            position_ids: ``[batch, tokens]``; by default counted from the past, padding included.
            attention: a backend to use instead of the one built from the mask and the cache.

        Raises:
            RequestError: the arguments contradict each other or the config, a token is not in the vocabulary, a
                position is beyond ``n_positions``, or attention weights are asked for.
            TypeError: an argument that is not known here.
        """
        refuse_unknown(extras, type(self))
        refuse_attentions(self.config, output_attentions)
        if input_ids is not None:
            self._check_tokens("input_ids", input_ids)
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        x = embed(self.wte, input_ids, inputs_embeds)
        batch, tokens, _ = x.shape
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache = pass_cache(cache, use_cache, attention, self.h)
        past = int(cache.get_seq_length()) if cache is not None else 0
        check_mask(attention_mask, batch, past, tokens)
        if attention is None:
            attention = self._backend(attention_mask, cache, past)
        x = x + self.wpe(self._positions(position_ids, past, tokens, x.device))
        if token_type_ids is not None:
            self._check_tokens("token_type_ids", token_type_ids)
            x = x + self.wte(token_type_ids)
        x, hidden = self.drop(x), ()
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        for block in self.h:
            hidden += (x,) if keep else ()
            x = block(x, attention)
        x = self.ln_f(x)
        result = DecoderOutput(last_hidden_state=x, **of_cache(cache), hidden_states=(*hidden, x) if keep else None)
        return result if self._wants_dict(return_dict) else result.to_tuple()

    def _check_tokens(self, name: str, ids: Tensor) -> None:
        check_range(name, ids, self.config.vocab_size, "vocab_size")

    def _positions(self, given: Tensor | None, past: int, tokens: int, device: torch.device) -> Tensor:
        """``[batch or 1, tokens]``, checked against the table of positions."""
        limit = self.config.n_positions
        if given is not None:
            check_range("position_ids", given, limit, "n_positions")
            return given
        check_positions(past + tokens, limit)
        return torch.arange(past, past + tokens, device=device)[None]

    def _backend(self, mask: Tensor | None, cache: Cache | None, past: int) -> DenseAttention:
        fused, upcast = self.config._attn_implementation != "eager", self.config.reorder_and_upcast_attn
        return DenseAttention(mask, cache, past, fused=fused, upcast=upcast)


class ImageGPTForCausalImageModeling(ImageGPTPreTrainedModel, EitherNameGenerationMixin):
    """The decoder with a head over the colours: it never predicts the start token."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: ImageGPTConfig):
        super().__init__(config)
        self.transformer = ImageGPTModel(config)
        self.lm_head = ColourHead(config)
        self.post_init()

    @either_cache_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CausalOutput | tuple:
        """As :meth:`ImageGPTModel.forward`, with logits ``[batch, tokens, vocab_size - 1]``.

        Args:
            labels: ``[batch, tokens]``, those of the tokens themselves; see :func:`colour_loss`.
            logits_to_keep: compute logits of the last n tokens (0: all), or of the token indices given.
            num_items_in_batch: labels of all ranks and micro-batches: the loss is their sum divided by it.
        """
        check_kept(labels, logits_to_keep)
        outputs = self.transformer(
            input_ids,
            cache,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            use_cache,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(kept_tokens(outputs.last_hidden_state, logits_to_keep))
        result = CausalOutput(
            loss=None if labels is None else colour_loss(logits, labels, num_items_in_batch),
            logits=logits,
            **of_cache(outputs.cache),
            hidden_states=outputs.hidden_states,
        )
        return result if self._wants_dict(return_dict) else result.to_tuple()


class ImageGPTForImageClassification(ImageGPTPreTrainedModel):
    """The decoder with ``num_labels`` scores of the mean hidden state over all tokens.

    Every token counts, padding too, as in transformers: pictures of one model have one length.
    """

    unused_tensors = (*ImageGPTPreTrainedModel.unused_tensors, r"^lm_head\.weight$")
    new_heads = ("score.weight",)
    accepts_loss_kwargs = False  # transformers' Trainer averages micro-batches itself

    def __init__(self, config: ImageGPTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.transformer = ImageGPTModel(config)
        self.score = nn.Linear(config.n_embd, self.num_labels, bias=False)
        self.post_init()

    @either_cache_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ClassifierOutput | tuple:
        """Scores ``[batch, num_labels]``; the loss follows ``config.problem_type`` as elsewhere in transformers."""
        outputs = self.transformer(
            input_ids,
            cache,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            use_cache,
            return_dict=True,
            **kwargs,
        )
        logits = self.score(outputs.last_hidden_state.mean(dim=1))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        result = ClassifierOutput(
            loss=loss,
            logits=logits,
            **of_cache(outputs.cache),
            hidden_states=outputs.hidden_states,
        )
        return result if self._wants_dict(return_dict) else result.to_tuple()
