"""The methods that official DeepSeek-VL2 code calls of a processor, over the same parts that make its prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from modelwright.processing.batching import ProcessedPrompt
from modelwright.processing.call_options import CallOptions
from modelwright.processing.chat import Segment, fill_pictures, prompt_segments
from modelwright.processing.image_processor import TileImageProcessor
from modelwright.processing.messages import Conversation
from modelwright.processing.printout import ConversationTemplate, new_template, print_conversation
from modelwright.processing.prompt_batch import PromptBatch, make_batch
from modelwright.processing.tiled_prompts import TiledPrompts

Lists = tuple[list[int], list[Tensor], list[bool], list[list[int]], list[int]]
"""Token ids, tiles [3, S, S], where pictures stand, (columns, rows) and token counts of each picture."""


@dataclass(frozen=True)
class ImageTransform:
    """A tile of a picture to float32 ``[3, S, S]``, normalised where the settings say so."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalize: bool
    tiles: TileImageProcessor

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(self.tiles.to_array(image))


class OfficialMethods:
    """For a processor that has a tokenizer and `TiledPrompts`."""

    tokenizer: Any
    _prompts: TiledPrompts

    @property
    def bos_id(self) -> int:
        """The beginning of sentence."""
        return self.tokenizer.bos_token_id

    @property
    def eos_id(self) -> int:
        """The end of sentence."""
        return self.tokenizer.eos_token_id

    @property
    def pad_id(self) -> int:
        """Padding."""
        return self.tokenizer.pad_token_id

    @property
    def image_transform(self) -> ImageTransform:
        """What makes the model's numbers of a tile."""
        settings = self._prompts.settings
        mean, std = tuple(settings.image_mean), tuple(settings.image_std)
        return ImageTransform(mean, std, settings.normalize, self._prompts.tiles)

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """The tokens of words, with a beginning and an end of sentence where asked for."""
        return [self.bos_id] * bos + self._prompts.encode(text) + [self.eos_id] * eos

    def new_chat_template(self) -> ConversationTemplate:
        """An empty conversation of the processor's format."""
        return new_template(self._prompts.settings.sft_format)

    def format_messages(
        self, conversations: Conversation, sft_format: str = "deepseek", system_prompt: str = ""
    ) -> str:
        """Messages as text, by the official printout."""
        return print_conversation(conversations, sft_format, system_prompt)

    def format_prompts(self, prompts: str, sft_format: str = "deepseek", system_prompt: str = "") -> str:
        """A user's words as text that the assistant is to answer, by the official printout."""
        user, assistant = new_template(sft_format).roles
        messages = [{"role": user, "content": prompts}, {"role": assistant, "content": ""}]
        return print_conversation(messages, sft_format, system_prompt)

    def format_messages_v2(
        self, messages: Conversation, pil_images: Sequence[Any] | None, systems: None = None
    ) -> tuple[list[int], list[int], list[Tensor], list[bool], list[list[int]], list[int]]:
        """Messages as tokens, labels, and the rest of `Lists`, the last end of sentence included."""
        (one,) = self._prompts.process([messages], [list(pil_images or ())], inference_mode=False)
        ids, tiles, mask, crops, counts = _lists(one)
        return ids, one.labels.tolist(), tiles, mask, crops, counts

    def tokenize_with_images(
        self,
        conversation: str,
        images: Sequence[Any] | None,
        bos: bool = True,
        eos: bool = True,
        cropping: bool = True,
    ) -> Lists:
        """Text in which each ``<image>`` stands for a picture.

        Raises:
            RequestError: counts of pictures and placeholders that differ, or an unreadable picture.
        """
        row = prompt_segments(conversation, image_token=self._prompts.settings.image_token, images=list(images or ()))
        filled: tuple[Segment, ...] = fill_pictures(row, list(images or ()), "the conversation")
        one = self._prompts.tokenize(filled, begin=bos, end=eos, crop=cropping)
        return _lists(one)

    def batchify(
        self, sample_list: Sequence[ProcessedPrompt], padding: Literal["left", "right"] = "left"
    ) -> PromptBatch:
        """Outputs of ``process_one`` as one batch."""
        how = CallOptions(padding_side=padding)
        return make_batch(sample_list, how, tokenizer=self.tokenizer, ignore_id=self._prompts.settings.ignore_id)


def _lists(one: ProcessedPrompt) -> Lists:
    tiles = [torch.from_numpy(np.ascontiguousarray(tile)) for tile in one.images] if one.num_image_tokens else []
    crops = one.images_spatial_crop.tolist() if one.num_image_tokens else []
    return one.input_ids.tolist(), tiles, one.images_seq_mask.tolist(), crops, list(one.num_image_tokens)
