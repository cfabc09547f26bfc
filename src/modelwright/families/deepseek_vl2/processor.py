"""The DeepSeek-VL2 processor: conversations and pictures to the arrays the model takes; needs no model."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin

from modelwright.configs.tiling import image_token_count, tile_side
from modelwright.errors import CheckpointError, RequestError
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.processing.batching import ProcessedPrompt, pad_batch
from modelwright.processing.chat import (
    Segment,
    conversation_segments,
    fill_pictures,
    jinja_chat_template,
    prompt_segments,
)
from modelwright.processing.image_processor import TileImageProcessor
from modelwright.processing.images import load_image
from modelwright.processing.messages import Conversation
from modelwright.processing.rows import Pictures, deal_pictures, pictures_per_row, split_rows
from modelwright.processing.settings import check_settings, refuse_unknown
from modelwright.processing.special_tokens import add_special_tokens
from modelwright.processing.tokenizer import require_tokenizer

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


class DeepseekVLV2Processor(ProcessorMixin):
    """Text and pictures in, ``BatchFeature`` out, with the official names, values and ids.

    The arguments are those of a hub ``processor_config.json``, and three of ours:

    Args:
        tokenizer: becomes the processor's own: special tokens it lacks are added, it pads on the left, and it gets a
            chat template when it has none.
        candidate_resolutions: (width, height) pairs; the first is the size of one square tile.
        pad_token: used when the tokenizer has none.
        sft_format: deepseek, plain or alignment.
        mask_prompt: whether labels leave out everything but the answers.
        add_special_token: accepted, without effect, as in the official code.
        tile_tag, global_view_pos: as in the model's configuration; they fix the number of image tokens.
        max_cropped_images: pictures are cut into local tiles when the conversation holds at most this many.

    Raises:
        ConfigError: an unknown or impossible setting.
    """

    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        candidate_resolutions: Sequence[Sequence[int]] = ((384, 384),),
        patch_size: int = 14,
        downsample_ratio: int = 2,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        normalize: bool = True,
        image_token: str = "<image>",
        pad_token: str = "<｜▁pad▁｜>",
        sft_format: str = "deepseek",
        mask_prompt: bool = True,
        ignore_id: int = -100,
        add_special_token: bool = False,
        tile_tag: str = "2D",
        global_view_pos: str = "head",
        max_cropped_images: int = 2,
        **kwargs: Any,
    ):
        refuse_unknown(kwargs, known=list(inspect.signature(DeepseekVLV2Processor).parameters))
        check_settings(
            candidate_resolutions=candidate_resolutions,
            patch_size=patch_size,
            downsample_ratio=downsample_ratio,
            image_mean=image_mean,
            image_std=image_std,
            sft_format=sft_format,
            tile_tag=tile_tag,
            global_view_pos=global_view_pos,
        )
        self.candidate_resolutions = [list(resolution) for resolution in candidate_resolutions]
        self.patch_size = patch_size
        self.downsample_ratio = downsample_ratio
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.normalize = normalize
        self.image_token = image_token
        self.pad_token = pad_token
        self.sft_format = sft_format
        self.mask_prompt = mask_prompt
        self.ignore_id = ignore_id
        self.add_special_token = add_special_token
        self.tile_tag = tile_tag
        self.global_view_pos = global_view_pos
        self.max_cropped_images = max_cropped_images

        add_special_tokens(tokenizer, image_token=image_token, pad_token=pad_token)
        tokenizer.padding_side = "left"
        if tokenizer.chat_template is None:
            tokenizer.chat_template = jinja_chat_template(sft_format, image_token)
        super().__init__(tokenizer, chat_template=tokenizer.chat_template)
        self.image_token_id = _token_id(tokenizer, image_token)
        self._tiles = TileImageProcessor(
            tuple((width, height) for width, height in self.candidate_resolutions),
            self.image_size,
            tuple(self.image_mean),
            tuple(self.image_std),
            normalize,
        )

    @property
    def image_size(self) -> int:
        """The side of a tile in pixels."""
        return self.candidate_resolutions[0][0]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "images", "images_seq_mask", "images_spatial_crop"]

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Pictures = None,
        text: str | Sequence[str] | None = None,
        *,
        conversations: Conversation | Sequence[Conversation] | None = None,
        prompt: str | Sequence[str] | None = None,
        inference_mode: bool = True,
        system_prompt: str = "",
        force_batchify: bool = True,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> Any:
        """One conversation, or several padded on the left.

        Args:
            images: the pictures given beside the conversations (see `messages` for those inside them): a list of
                pictures, handed out to the placeholders in order, or one such list for each conversation.
            conversations: a list of messages, or a list of such lists.
            prompt, text: text that is formatted already, or a list of it, instead of conversations.
            inference_mode: leave out the last end of sentence, so that the model continues the last answer.
            system_prompt: comes first, as a system message would.
            force_batchify: with False, one conversation comes back as a `ProcessedPrompt`.
            return_tensors: ``pt`` or ``np``.

        Returns:
            BatchFeature with the fields and shapes of `pad_batch`.

        Raises:
            RequestError: bad messages, unreadable pictures, or counts of pictures and placeholders that differ.
        """
        kwargs.pop("padding", None)  # always on the left, to the longest
        if kwargs:
            raise RequestError(f"the processor does not know the arguments {', '.join(sorted(kwargs))}")
        rows = self._segments(conversations, prompt if prompt is not None else text, images, system_prompt)
        outputs = [self._process(segments, inference_mode) for segments in rows]
        if not force_batchify and len(outputs) == 1:
            return outputs[0]
        return self.batch(outputs, return_tensors=return_tensors)

    def process_one(
        self,
        conversation: Conversation,
        images: Pictures = None,
        *,
        inference_mode: bool = True,
        system_prompt: str = "",
    ) -> ProcessedPrompt:
        """One conversation, not batched."""
        (segments,) = self._segments([conversation], None, None if images is None else [images], system_prompt)
        return self._process(segments, inference_mode)

    def batch(self, prompts: Sequence[ProcessedPrompt], *, return_tensors: str | None = "pt") -> BatchFeature:
        """Pad single outputs into a batch; see `pad_batch` for shapes."""
        arrays = pad_batch(prompts, pad_id=cast(int, self.tokenizer.pad_token_id), ignore_id=self.ignore_id)
        return BatchFeature(arrays, tensor_type=return_tensors)

    def num_image_tokens(self, grid: tuple[int, int]) -> int:
        """Tokens of a picture whose local tiles form ``grid`` (columns, rows)."""
        side = tile_side(self.image_size, self.patch_size, self.downsample_ratio)
        return image_token_count(grid, side, self.tile_tag)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, conversation: Any, chat_template: str | None = None, *, tokenize: bool = False, **kwargs: Any
    ) -> Any:
        """The conversation as text, the same as the tokenizer's; with ``tokenize`` the processor's own output."""
        if tokenize:
            return self(conversations=conversation)
        return self.tokenizer.apply_chat_template(conversation, chat_template=chat_template, tokenize=False, **kwargs)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "DeepseekVLV2Processor":
        """Load from a folder or hub name with the files of an official checkpoint.

        ``tokenizer.json`` is taken as it is, whatever class ``tokenizer_config.json`` names: the Llama class named
        there by the official files would bring a pre-tokenizer of its own. The tokenizer may lie in a folder
        ``tokenizer`` beside ``processor_config.json``.
        """
        hub = {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}
        folder = Path(pretrained_model_name_or_path)
        if (folder / "tokenizer" / "tokenizer.json").is_file() and not (folder / "tokenizer.json").exists():
            folder = folder / "tokenizer"
        source = folder if folder.is_dir() else pretrained_model_name_or_path
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(source, **hub)
            settings, overrides = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        except Exception as error:  # the tokenizers library raises a bare Exception for a damaged file
            raise CheckpointError(f"{source} holds no processor that can be read: {error}") from error
        return cast(DeepseekVLV2Processor, cls.from_args_and_dict([tokenizer], settings, **overrides))

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write the files of a hub checkpoint; the tokenizer names a class that older transformers know too."""
        written = super().save_pretrained(str(save_directory), push_to_hub=push_to_hub, **kwargs)
        config_file = Path(save_directory) / "tokenizer_config.json"
        config = json.loads(config_file.read_text("utf-8"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config_file.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", "utf-8")
        tokens = json.dumps(self.tokenizer.special_tokens_map, ensure_ascii=False, indent=2, default=str)
        (Path(save_directory) / "special_tokens_map.json").write_text(tokens + "\n", "utf-8")
        return written

    def _segments(
        self, conversations: Any, prompts: Any, images: Pictures, system_prompt: str
    ) -> list[tuple[Segment, ...]]:
        """The segments of every row with all pictures in place."""
        if (conversations is None) == (prompts is None):
            raise RequestError("give either conversations or a prompt (text)")
        if prompts is not None and system_prompt:
            raise RequestError("system_prompt belongs to conversations; a prompt is formatted already")
        inputs = split_rows(conversations if prompts is None else prompts)
        per_row = pictures_per_row(images, len(inputs))
        beside = per_row or [images] * len(inputs)
        if prompts is None:
            rows = [
                conversation_segments(
                    messages,
                    sft_format=self.sft_format,
                    image_token=self.image_token,
                    eos_token=cast(str, self.tokenizer.eos_token),
                    images=pictures,
                    system_prompt=system_prompt,
                )
                for messages, pictures in zip(inputs, beside, strict=True)
            ]
        else:
            rows = [
                prompt_segments(text.removeprefix(self._bos_token), image_token=self.image_token, images=pictures)
                for text, pictures in zip(inputs, beside, strict=True)
            ]
        return self._fill(rows, per_row or deal_pictures(images or (), rows, self.image_token))

    def _fill(self, rows: list[tuple[Segment, ...]], pictures: Sequence[Pictures]) -> list[tuple[Segment, ...]]:
        names = ["the conversation"] if len(rows) == 1 else [f"conversation {index}" for index in range(len(rows))]
        return [fill_pictures(row, given or (), name) for row, given, name in zip(rows, pictures, names, strict=True)]

    @property
    def _bos_token(self) -> str:
        return cast(str, self.tokenizer.bos_token or "")

    def _process(self, segments: Sequence[Segment], inference_mode: bool) -> ProcessedPrompt:
        crop = sum(segment.is_picture for segment in segments) <= self.max_cropped_images
        tiles = [self._tiles(load_image(segment.picture), crop=crop) for segment in segments if segment.is_picture]
        counts = iter([self.num_image_tokens(tile.grid) for tile in tiles])
        ids: list[int] = [] if self.tokenizer.bos_token_id is None else [cast(int, self.tokenizer.bos_token_id)]
        labels, mask = list(ids), [False] * len(ids)
        for segment in segments:
            words = [self.image_token_id] * next(counts) if segment.is_picture else self._encode(segment.text)
            learnt = not segment.is_picture and (segment.is_answer or not self.mask_prompt)
            ids += words
            labels += words if learnt else [self.ignore_id] * len(words)
            mask += [segment.is_picture] * len(words)
        text = self._bos_token + "".join(segment.text for segment in segments)
        if inference_mode and segments and segments[-1].is_answer and ids[-1] == self.tokenizer.eos_token_id:
            ids, labels, mask = ids[:-1], labels[:-1], mask[:-1]
            text = text.removesuffix(cast(str, self.tokenizer.eos_token))
        return ProcessedPrompt(
            text=text,
            input_ids=np.array(ids, np.int64),
            labels=np.array(labels, np.int64),
            images_seq_mask=np.array(mask, bool),
            images=np.concatenate([tile.pixels for tile in tiles]) if tiles else self._tiles.blank(),
            images_spatial_crop=np.array([tile.grid for tile in tiles] or [(0, 0)], np.int64),
            num_image_tokens=tuple(self.num_image_tokens(tile.grid) for tile in tiles),
        )

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    return cast(int, tokenizer.convert_tokens_to_ids(token))


def read_processor(folder: Path, config: DeepseekVLV2Config) -> DeepseekVLV2Processor:
    """The processor in a folder, told what official files say in ``config.json`` only: how tiles become rows.

    Raises:
        CheckpointError: the folder lacks a file.
    """
    require_tokenizer(folder)
    if not (folder / "processor_config.json").is_file():
        raise CheckpointError(f"{folder} has no processor_config.json, which says how pictures are cut into tiles")
    return DeepseekVLV2Processor.from_pretrained(
        folder, tile_tag=config.tile_tag, global_view_pos=config.global_view_pos
    )
