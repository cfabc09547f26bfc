"""DeepSeek-V2 (arXiv:2405.04434): the decoder, and its heads for language modelling and sequence classification.

Leaves out the layers (``parts.py``), what transformers' callers ask of any decoder (``hf``), and where keys and values
live (``attention``).
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from modelwright.attention import AttentionBackend, DenseAttention
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.parts import DecoderLayer, build_rope
from modelwright.hf.arguments import PassInputs
from modelwright.hf.causal import CausalModel
from modelwright.hf.classification import TextClassifier
from modelwright.hf.decoder import Decoder
from modelwright.hf.pretrained import ModelwrightPreTrainedModel
from modelwright.hf.router_bias import RouterBiases
from modelwright.layers import Linear, RMSNorm, Routing, StackOutput, column_linear, run_stack
from modelwright.layers.balance import balance_loss


class DeepseekV2PreTrainedModel(RouterBiases, ModelwrightPreTrainedModel):
    """What the DeepSeek-V2 classes share: their config and the router's bias rule."""

    config_class = DeepseekV2Config
    base_model_prefix = "model"
    _no_split_modules: ClassVar[list[str]] = ["DecoderLayer"]

    def router_bias_rate(self) -> float:
        return self.config.get_text_config().topk_bias_update_rate


class DeepseekV2Model(DeepseekV2PreTrainedModel, Decoder):
    """The decoder without a head. What it caches with latent attention is the rotated key and the latent.

    Positions do not count padding.
    """

    config: DeepseekV2Config
    unused_tensors = (*DeepseekV2PreTrainedModel.unused_tensors, r"^(lm_head|score)\.weight$")
    embedding_names = ("embed_tokens",)
    norm_name = "norm"

    def __init__(self, config: DeepseekV2Config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.rotary = build_rope(config)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, self.rotary.softmax_gain) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def stack(self) -> nn.ModuleList:
        return self.layers

    def positions_of(self, inputs: PassInputs) -> Tensor:
        return inputs.unpadded_positions()

    def attention_of(self, inputs: PassInputs) -> AttentionBackend:
        fused = self.config._attn_implementation != "eager"
        return DenseAttention(inputs.mask, inputs.cache, inputs.past, fused=fused)

    def embed(self, positions: Tensor, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def run_layers(self, x: Tensor, positions: Tensor, attention: AttentionBackend, keep: bool = False) -> StackOutput:
        return run_stack(self.layers, x, self.rotary(positions), attention, keep=keep)

    def finish(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def balance_loss(self, routings: Sequence[Routing], batch: int) -> Tensor | None:
        return balance_loss(routings, batch, self.config.aux_loss_alpha, self.config.seq_aux)


class DeepseekV2ForCausalLM(DeepseekV2PreTrainedModel, CausalModel):
    """The decoder with a language-model head."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: DeepseekV2Config):
        super().__init__(config)
        self.model = DeepseekV2Model(config)
        self.lm_head = column_linear(config.hidden_size, config.vocab_size, slices=config.pretraining_tp)
        self.post_init()

    def token_loss(
        self, logits: Tensor, labels: Tensor, input_ids: Tensor | None, num_items: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        """Labels are those of the tokens themselves and shifted here; -100 does not count."""
        loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items)
        return loss, (labels[:, 1:] != -100).sum()


class DeepseekV2ForSequenceClassification(DeepseekV2PreTrainedModel, TextClassifier):
    """The decoder with ``num_labels`` scores read at each row's last token that is not padding."""

    unused_tensors = (*DeepseekV2PreTrainedModel.unused_tensors, r"^lm_head\.weight$")

    def __init__(self, config: DeepseekV2Config):
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.model = DeepseekV2Model(config)
        self.score = Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()
