"""DeepSeek-V2 as transformers' callers know it: the networks of ``network.py``, loaded, saved, and drawn from."""

from typing import ClassVar

from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.network import DeepseekV2Causal, DeepseekV2Decoder, DeepseekV2Network
from modelwright.hf.causal import CausalModel
from modelwright.hf.classification import TextClassifier
from modelwright.hf.decoder import Decoder
from modelwright.hf.pretrained import ModelwrightPreTrainedModel
from modelwright.hf.router_bias import RouterBiases
from modelwright.layers import Linear


class DeepseekV2PreTrainedModel(RouterBiases, DeepseekV2Network, ModelwrightPreTrainedModel):
    """What the DeepSeek-V2 models share: how a device map may part them, and the router's bias rule."""

    _no_split_modules: ClassVar[list[str]] = ["DecoderLayer"]

    def router_bias_rate(self) -> float:
        return self.config.get_text_config().topk_bias_update_rate


class DeepseekV2Model(DeepseekV2Decoder, DeepseekV2PreTrainedModel, Decoder):
    """The decoder without a head."""


class DeepseekV2ForCausalLM(DeepseekV2Causal, DeepseekV2PreTrainedModel, CausalModel):
    """The decoder with a language-model head."""

    decoder_class = DeepseekV2Model


class DeepseekV2ForSequenceClassification(DeepseekV2PreTrainedModel, TextClassifier):
    """The decoder with ``num_labels`` scores read at each row's last token that is not padding."""

    unused_tensors = (*DeepseekV2PreTrainedModel.unused_tensors, r"^lm_head\.weight$")

    def __init__(self, config: DeepseekV2Config):
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.model = DeepseekV2Model(config)
        self.score = Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()
