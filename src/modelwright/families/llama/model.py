"""Llama as transformers' callers know it: the networks of ``network.py``, loaded, saved, and drawn from."""

from typing import Any, ClassVar

from torch import Tensor

from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.network import LlamaCausal, LlamaDecoder, LlamaNetwork
from modelwright.hf.cache_names import either_cache_name, of_cache
from modelwright.hf.caches import Cache
from modelwright.hf.causal import CausalModel
from modelwright.hf.classification import TextClassifier
from modelwright.hf.decoder import Decoder
from modelwright.hf.pretrained import ModelwrightPreTrainedModel
from modelwright.hf.router_bias import RouterBiases
from modelwright.layers import column_linear
from modelwright.ops.packing import documents_of, positions_in_documents


class LlamaPreTrainedModel(RouterBiases, LlamaNetwork, ModelwrightPreTrainedModel):
    """What the Llama models share: how a device map may part them, and the router's bias rule."""

    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer"]

    def router_bias_rate(self) -> float:
        moe = self.config.moe_config
        return moe.topk_bias_update_rate if moe.balance_via_topk_bias else 0.0


class LlamaModel(LlamaDecoder, LlamaPreTrainedModel, Decoder):
    """The decoder without a head."""


class LlamaForCausalLM(LlamaCausal, LlamaPreTrainedModel, CausalModel):
    """The decoder with a language-model head."""

    decoder_class = LlamaModel

    @either_cache_name
    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs,
    ) -> dict[str, Any]:
        """As transformers', with the earlier documents of a packed prompt hidden from the new tokens.

        transformers leaves out a mask of ones. Where tokens can be padding by their id, none then is.
        """
        if self.config.use_eod_attn_mask_compression and inputs_embeds is None:
            documents = documents_of(input_ids, self.config.eos_token_ids)
            if self.config.reset_position_ids:
                kwargs["position_ids"] = positions_in_documents(documents)
            if cache is not None and cache.get_seq_length():
                own = documents == documents[:, -1:]
                attention_mask = own.long() if attention_mask is None else attention_mask * own
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **of_cache(cache), **kwargs
        )
        new = inputs.get("input_ids")
        if self.config.padding_by_id is not None and new is not None and inputs.get("attention_mask") is None:
            past = 0 if cache is None else int(cache.get_seq_length())
            inputs["attention_mask"] = new.new_ones(len(new), past + new.shape[1])
        return inputs


class LlamaForSequenceClassification(LlamaPreTrainedModel, TextClassifier):
    """The decoder with ``num_labels`` scores read at each row's last token that is not padding."""

    unused_tensors = (*LlamaPreTrainedModel.unused_tensors, r"^lm_head\.weight$")

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.model = LlamaModel(config)
        self.score = column_linear(config.hidden_size, self.num_labels, compute=self.model.types.compute)
        self.model.types.store(self.score)
        self.post_init()
