"""DeepSeek-VL2 as transformers' callers know it: the network of ``network.py``, loaded, saved, and drawn from."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.errors import RequestError
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM, DeepseekV2PreTrainedModel
from modelwright.families.deepseek_vl2.network import DeepseekVLV2Network
from modelwright.hf.arguments import PassInputs
from modelwright.hf.cache_names import CACHE_NAME
from modelwright.hf.caches import Cache, growing_cache
from modelwright.hf.causal import GeneratingModel
from modelwright.hf.offload import OffloadedCache

PICTURE_ARGUMENTS = ("images", "images_seq_mask", "images_spatial_crop")


class DeepseekVLV2ForCausalLM(DeepseekVLV2Network, DeepseekV2PreTrainedModel, GeneratingModel):
    """Pictures and text in, text out."""

    _no_split_modules: ClassVar[list[str]] = ["DecoderLayer", "Block"]
    causal = DeepseekV2ForCausalLM

    @torch.no_grad()
    def incremental_prefilling(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        images: Tensor | None = None,
        images_seq_mask: Tensor | None = None,
        images_spatial_crop: Tensor | None = None,
        chunk_size: int = 1024,
        offload: bool = False,
    ) -> tuple[Tensor, Cache]:
        """Prefill all but the last token, ``chunk_size`` tokens at a time; ``generate`` continues from the result.

        Arguments are those of :meth:`forward`, and besides:

        Args:
            chunk_size: tokens of one pass; the activations' memory grows with it and not with the prompt.
            offload: keep the cache in host memory between uses; each chunk moves its new entries only.

        Returns:
            The prompt's embeddings ``[batch, tokens, hidden]`` and the cache of ``tokens - 1`` tokens.
        """
        if chunk_size < 1:
            raise RequestError(f"chunk_size ({chunk_size}) must be at least 1")
        inputs_embeds = self._embeds(input_ids, inputs_embeds, images, images_seq_mask, images_spatial_crop)
        batch, tokens = inputs_embeds.shape[:2]
        if attention_mask is not None and attention_mask.shape != (batch, tokens):
            raise RequestError(f"attention_mask has shape {list(attention_mask.shape)} and must have {[batch, tokens]}")
        positions = PassInputs.of(None, inputs_embeds, attention_mask).unpadded_positions()
        cache = OffloadedCache(inputs_embeds.device) if offload else growing_cache()
        for start in range(0, tokens - 1, chunk_size):
            stop = min(start + chunk_size, tokens - 1)
            self.language.model(
                inputs_embeds=inputs_embeds[:, start:stop],
                attention_mask=None if attention_mask is None else attention_mask[:, :stop],
                position_ids=positions[:, start:stop],
                cache=cache,
                use_cache=True,
            )
        return inputs_embeds, cache

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs,
    ) -> dict[str, Any]:
        """Pictures enter with the tokens that they are part of.

        The prompt may come whole, in parts, or as what is new of a conversation that a cache holds in part.
        """
        inputs = super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        pictures = {name: inputs.pop(name) for name in PICTURE_ARGUMENTS if name in inputs}
        places, new = pictures.get("images_seq_mask"), inputs.get("input_ids")
        if new is None:
            return inputs
        if places is None:
            inputs.update(pictures if is_first_iteration else {})
            return inputs
        past = 0 if inputs.get(CACHE_NAME) is None else int(inputs[CACHE_NAME].get_seq_length())
        stop, prompt = past + new.shape[1], places.shape[1]
        pictures["images_seq_mask"] = places = F.pad(places, (0, max(stop - prompt, 0)))  # what is drawn is no picture
        if past == 0 and stop >= prompt:
            inputs.update(pictures)
        elif past < prompt and places[:, past:stop].any():
            whole = F.pad(new, (past, places.shape[1] - stop))
            inputs["inputs_embeds"] = self.prepare_inputs_embeds(whole, **pictures)[:, past:stop]
            inputs["input_ids"] = None
        return inputs
