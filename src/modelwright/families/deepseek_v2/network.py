"""DeepSeek-V2 (arXiv:2405.04434): the decoder, and its head for language modelling.

Leaves out the layers (``parts.py``), what transformers' callers ask of any decoder (``hf``), the classes that
transformers knows (``model.py``), and where keys and values live (``attention``).
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from modelwright.attention import AttentionBackend, attention_over
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.parts import DecoderLayer, build_rope
from modelwright.hf.arguments import PassInputs
from modelwright.hf.caches import refuse_heads
from modelwright.hf.causal_network import CausalNetwork
from modelwright.hf.decoder_network import DecoderNetwork
from modelwright.hf.network import Network
from modelwright.layers import RMSNorm, Routing, StackOutput, column_linear, run_stack
from modelwright.layers.balance import balance_loss


class DeepseekV2Network(Network):
    """What the DeepSeek-V2 networks share."""

    config_class = DeepseekV2Config
    base_model_prefix = "model"


class DeepseekV2Decoder(DeepseekV2Network, DecoderNetwork):
    """The decoder without a head. What it caches with latent attention is the rotated key and the latent.

    Positions do not count padding.
    """

    config: DeepseekV2Config
    unused_tensors = (*Network.unused_tensors, r"^(lm_head|score)\.weight$")
    embedding_names = ("embed_tokens",)
    norm_name = "norm"
    packs_documents = True

    @property
    def balances_sequences(self) -> bool:
        return self.config.seq_aux

    @property
    def balances_batches(self) -> bool:
        return bool(self.config.n_routed_experts) and not self.config.seq_aux and self.config.aux_loss_alpha > 0

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
        if self.config.use_mla and inputs.cache is not None:
            refuse_heads(inputs.cache)
        return attention_over(inputs.documents, inputs.mask, inputs.cache, inputs.past, fused)

    def embed(self, positions: Tensor, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def run_layers(
        self,
        x: Tensor,
        positions: Tensor,
        attention: AttentionBackend,
        keep: bool = False,
        only: Tensor | None = None,
    ) -> StackOutput:
        return run_stack(self.layers_in_use(), x, self.rotary(positions), attention, keep=keep, only=only)

    def finish(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def balance_loss(self, routings: Sequence[Routing], batch: int, documents: Tensor | None = None) -> Tensor | None:
        return balance_loss(routings, batch, self.config.aux_loss_alpha, self.config.seq_aux, documents)


class DeepseekV2Causal(DeepseekV2Network, CausalNetwork):
    """The decoder with a language-model head."""

    decoder_class: ClassVar[type[DeepseekV2Decoder]] = DeepseekV2Decoder
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: DeepseekV2Config):
        super().__init__(config)
        self.model = self.decoder_class(config)
        self.lm_head = column_linear(config.hidden_size, config.vocab_size, slices=config.pretraining_tp)
        self.post_init()
