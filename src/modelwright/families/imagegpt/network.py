"""ImageGPT (Chen et al., "Generative Pretraining from Pixels", ICML 2020): the decoder and its head over colours.

Leaves out the blocks and the loss (``parts.py``), pictures (``processing``), what transformers' callers ask of any
decoder (``hf``), the classes that transformers knows (``model.py``), and where keys and values live (``attention``).
The forward passes differ from those of other families in the order of their arguments, which is that of transformers'
ImageGPT.
"""

import math
from typing import ClassVar

from torch import Tensor, nn

from modelwright.attention import AttentionBackend, DenseAttention
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.parts import (
    ColourHead,
    ImageGPTBlock,
    Projection,
    ResidualProjection,
    build_norm,
    check_positions,
    next_colours,
)
from modelwright.hf.arguments import PassInputs, check_range, check_tokens, one_of
from modelwright.hf.cache_names import either_cache_name
from modelwright.hf.caches import Cache
from modelwright.hf.causal_network import CausalNetwork, is_hooked
from modelwright.hf.decoder_network import DecoderNetwork
from modelwright.hf.modules import Conv1D
from modelwright.hf.network import Network
from modelwright.hf.outputs import CausalOutput, DecoderOutput
from modelwright.layers import StackOutput, run_stack


class ImageGPTNetwork(Network):
    """What the ImageGPT networks share: their config, their first weights, and the masks that old files hold."""

    config_class = ImageGPTConfig
    config: ImageGPTConfig
    base_model_prefix = "transformer"

    unused_tensors = (r"(^|\.)h\.\d+\.attn\.(bias|masked_bias)$",)
    own_matrices = (Projection, ResidualProjection, ColourHead)

    def initialise(self, module: nn.Module) -> None:
        """What is added to the residual starts smaller by ``sqrt(2 * n_layer)``, the number of additions.

        GPT-2's scheme (Radford et al., 2019, section 2.3).
        """
        if isinstance(module, Conv1D):
            shrink = math.sqrt(2 * self.config.n_layer) if isinstance(module, ResidualProjection) else 1.0
            nn.init.normal_(module.weight, std=self.config.initializer_range / shrink)
            nn.init.zeros_(module.bias)


class ImageGPTDecoder(ImageGPTNetwork, DecoderNetwork):
    """The decoder without a head: colour tokens or embeddings to normed hidden states ``[batch, tokens, n_embd]``.

    Positions count padding.
    """

    unused_tensors = (*ImageGPTNetwork.unused_tensors, r"^(lm_head|score)\.weight$")
    embedding_names = ("wte", "wpe")
    norm_name = "ln_f"

    def __init__(self, config: ImageGPTConfig):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(ImageGPTBlock(config, layer) for layer in range(config.n_layer))
        self.ln_f = build_norm(config)
        self.post_init()

    def stack(self) -> nn.ModuleList:
        return self.h

    def positions_of(self, inputs: PassInputs) -> Tensor:
        if isinstance(inputs.past, int):
            check_positions(inputs.past + inputs.tokens, self.config.n_positions)
        return inputs.positions()

    def attention_of(self, inputs: PassInputs) -> AttentionBackend:
        fused, upcast = self.config._attn_implementation != "eager", self.config.reorder_and_upcast_attn
        return DenseAttention(inputs.mask, inputs.cache, inputs.past, fused=fused, upcast=upcast)

    def embed(self, positions: Tensor, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        return self.drop(x + self.wpe(positions))

    def run_layers(
        self,
        x: Tensor,
        positions: Tensor,
        attention: AttentionBackend,
        keep: bool = False,
        only: Tensor | None = None,
    ) -> StackOutput:
        return run_stack(self.layers_in_use(), x, attention, keep=keep, only=only)

    def finish(self, x: Tensor) -> Tensor:
        return self.ln_f(x)

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
        """As :meth:`DecoderNetwork.forward`.

        Args:
            token_type_ids: ``[batch, tokens]`` in the vocabulary; their embeddings are added, as transformers does.
            position_ids: checked against ``n_positions``, unless the caller brings ``attention`` and so knows what came
                before: a recorded pass may not wait for the numbers.

        Raises:
            RequestError: also where a token is not in the vocabulary, or a position is beyond ``n_positions``.
        """
        if position_ids is not None and attention is None:
            check_range("position_ids", position_ids, self.config.n_positions, "n_positions")
        if token_type_ids is not None:
            x = one_of(input_ids, inputs_embeds)
            check_range("token_type_ids", token_type_ids, self.config.vocab_size, "vocab_size")
            if input_ids is not None:
                check_tokens(input_ids, self.config)
                x = self.wte(input_ids)
            input_ids, inputs_embeds = None, x + self.wte(token_type_ids)
        return super().forward(
            input_ids,
            attention_mask,
            position_ids,
            cache,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            return_dict,
            attention,
            **extras,
        )


class ImageGPTCausal(ImageGPTNetwork, CausalNetwork):
    """The decoder with a head over the colours: it never predicts the start token."""

    decoder_class: ClassVar[type[ImageGPTDecoder]] = ImageGPTDecoder
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: ImageGPTConfig):
        super().__init__(config)
        self.transformer = self.decoder_class(config)
        self.lm_head = ColourHead(config)
        self.post_init()

    def next_tokens(self, labels: Tensor, input_ids: Tensor | None) -> Tensor:
        """See :func:`next_colours`."""
        return next_colours(labels, self.lm_head.out_features)

    def head_weight(self) -> Tensor | None:
        """A weight tied to the embedding has a row for the start token too, which is left out."""
        head: nn.Linear = self.lm_head
        return head.weight[: head.out_features] if type(head) is ColourHead and not is_hooked(head) else None

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
        """As :meth:`CausalNetwork.forward`, with logits ``[batch, tokens, vocab_size - 1]``."""
        return super().forward(
            input_ids,
            attention_mask,
            position_ids,
            cache,
            inputs_embeds,
            labels,
            use_cache,
            logits_to_keep,
            num_items_in_batch,
            return_dict,
            token_type_ids=token_type_ids,
            **kwargs,
        )
