"""ImageGPT as transformers' callers know it: the networks of ``network.py``, loaded, saved, and drawn from."""

from typing import Any, ClassVar

from torch import Tensor, nn

from modelwright.attention import AttentionBackend
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.network import ImageGPTCausal, ImageGPTDecoder, ImageGPTNetwork
from modelwright.hf.arguments import PassInputs
from modelwright.hf.cache_names import either_cache_name
from modelwright.hf.caches import Cache
from modelwright.hf.causal import CausalModel
from modelwright.hf.classification import Classifier
from modelwright.hf.decoder import Decoder
from modelwright.hf.outputs import ClassifierOutput
from modelwright.hf.pretrained import ModelwrightPreTrainedModel
from modelwright.layers import Linear


class ImageGPTPreTrainedModel(ImageGPTNetwork, ModelwrightPreTrainedModel):
    """What the ImageGPT models share: what goes in, and how a device map may part them."""

    main_input_name = "input_ids"
    input_modalities = ["image"]
    _no_split_modules: ClassVar[list[str]] = ["ImageGPTBlock"]


class ImageGPTModel(ImageGPTDecoder, ImageGPTPreTrainedModel, Decoder):
    """The decoder without a head."""

    def attention_of(self, inputs: PassInputs) -> AttentionBackend:
        if inputs.input_ids is not None:
            self.warn_if_padding_and_no_attention_mask(inputs.input_ids, inputs.mask)
        return super().attention_of(inputs)


class ImageGPTForCausalImageModeling(ImageGPTCausal, ImageGPTPreTrainedModel, CausalModel):
    """The decoder with a head over the colours: it never predicts the start token."""

    decoder_class = ImageGPTModel

    def _get_resized_lm_head(self, old_lm_head: nn.Linear, new_num_tokens: int | None = None, **how: Any) -> nn.Linear:
        """For ``resize_token_embeddings``: the head of so many tokens, of which the last, the start, is never drawn."""
        colours = None if new_num_tokens is None else new_num_tokens - 1
        return super()._get_resized_lm_head(old_lm_head, colours, **how)  # pyright: ignore[reportAttributeAccessIssue]


class ImageGPTForImageClassification(ImageGPTPreTrainedModel, Classifier):
    """The decoder with ``num_labels`` scores of the mean hidden state over all tokens.

    Every token counts, padding too, as in transformers: pictures of one model have one length.
    """

    unused_tensors = (*ImageGPTPreTrainedModel.unused_tensors, r"^lm_head\.weight$")

    def __init__(self, config: ImageGPTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.transformer = ImageGPTModel(config)
        self.score = Linear(config.n_embd, self.num_labels, bias=False)
        self.post_init()

    def pooled(self, hidden: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        return hidden.mean(dim=1)

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
        """As :meth:`Classifier.forward`."""
        return super().forward(
            input_ids,
            attention_mask,
            position_ids,
            cache,
            inputs_embeds,
            labels,
            use_cache,
            return_dict,
            token_type_ids=token_type_ids,
            **kwargs,
        )
