"""Conversations whose pictures are cut into tiles, to the arrays a model reads: what DeepSeek-VL2's processor does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from modelwright.configs.tiling import image_token_count, tile_side
from modelwright.errors import RequestError
from modelwright.processing.batching import ProcessedPrompt
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
from modelwright.processing.rows import Pictures, deal_pictures, listed, pictures_per_row, split_rows
from modelwright.processing.settings import check_settings, refuse_unknown
from modelwright.processing.special_tokens import add_special_tokens
from modelwright.processing.tokenizer import read_fast_tokenizer


@dataclass(frozen=True)
class TiledPromptSettings:
    """The settings of a hub ``processor_config.json``, and three of ours.

    Attributes:
        candidate_resolutions: (width, height) pairs; the first is the size of one square tile.
        pad_token: used when the tokenizer has none.
        sft_format: deepseek, plain or alignment.
        mask_prompt: whether labels leave out everything but the answers.
        add_special_token: accepted, without effect, as in the official code.
        tile_tag, global_view_pos: as in the model's configuration; they fix the number of image tokens.
        max_cropped_images: pictures are cut into local tiles when the conversation holds at most this many.

    Raises:
        ConfigError: an impossible setting.
    """

    candidate_resolutions: Sequence[Sequence[int]] = ((384, 384),)
    patch_size: int = 14
    downsample_ratio: int = 2
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    image_std: Sequence[float] = (0.5, 0.5, 0.5)
    normalize: bool = True
    image_token: str = "<image>"
    pad_token: str = "<｜▁pad▁｜>"
    sft_format: str = "deepseek"
    mask_prompt: bool = True
    ignore_id: int = -100
    add_special_token: bool = False
    tile_tag: str = "2D"
    global_view_pos: str = "head"
    max_cropped_images: int = 2

    def __post_init__(self) -> None:
        check_settings(
            candidate_resolutions=self.candidate_resolutions,
            patch_size=self.patch_size,
            downsample_ratio=self.downsample_ratio,
            image_mean=self.image_mean,
            image_std=self.image_std,
            sft_format=self.sft_format,
            tile_tag=self.tile_tag,
            global_view_pos=self.global_view_pos,
        )

    @classmethod
    def of_file(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """The settings that a ``processor_config.json`` holds, with `overrides` in their place.

        Raises:
            ConfigError: a setting that does not exist; the nearest one that does is named.
        """
        known = [field.name for field in fields(cls)]
        refuse_unknown({name: value for name, value in values.items() if name not in known}, known)
        return cls(**{name: value for name, value in values.items() if name in known} | overrides)

    @property
    def image_size(self) -> int:
        """The side of a tile in pixels."""
        return self.candidate_resolutions[0][0]


class TiledPrompts:
    """Makes prompts of conversations and pictures.

    Args:
        tokenizer: of transformers. It becomes this object's own: special tokens that it lacks are added, it pads on the
            left, and it gets a chat template when it has none.
    """

    def __init__(self, tokenizer: Any, settings: TiledPromptSettings):
        add_special_tokens(tokenizer, image_token=settings.image_token, pad_token=settings.pad_token)
        tokenizer.padding_side = "left"
        if tokenizer.chat_template is None:
            tokenizer.chat_template = jinja_chat_template(settings.sft_format, settings.image_token)
        self.tokenizer, self.settings = tokenizer, settings
        self.image_token_id = cast(int, tokenizer.convert_tokens_to_ids(settings.image_token))
        self._tiles = TileImageProcessor(
            tuple((width, height) for width, height in settings.candidate_resolutions),
            settings.image_size,
            tuple(settings.image_mean),
            tuple(settings.image_std),
            settings.normalize,
        )

    @classmethod
    def read(cls, folder: Path, settings: TiledPromptSettings) -> Self:
        """With the tokenizer of a checkpoint folder."""
        return cls(read_fast_tokenizer(folder), settings)

    def process_one(
        self,
        conversation: Conversation,
        images: Pictures = None,
        *,
        inference_mode: bool = True,
        system_prompt: str = "",
    ) -> ProcessedPrompt:
        """One conversation.

        Args:
            images: pictures given beside it (see `messages` for those inside it).
            inference_mode: leave out the last end of sentence, so that the model continues the last answer.
            system_prompt: comes first, as a system message would.

        Raises:
            RequestError: bad messages, unreadable pictures, or counts of pictures and placeholders that differ.
        """
        beside = None if images is None else [images]
        return self.process([conversation], None, beside, inference_mode=inference_mode, system_prompt=system_prompt)[0]

    def process(
        self, conversations: Any, prompts: Any, images: Pictures, *, inference_mode: bool, system_prompt: str = ""
    ) -> list[ProcessedPrompt]:
        """Conversations, or texts that are formatted already: one of the two, one or a list of them.

        Args:
            images: the pictures given beside them: a list of pictures, handed out to the placeholders in order, or one
                such list for each.
            inference_mode, system_prompt: as for `process_one`.

        Raises:
            RequestError: as `process_one`, or not exactly one of conversations and texts.
        """
        rows = self._segments(conversations, prompts, images, system_prompt)
        return [self._process(segments, inference_mode) for segments in rows]

    def num_image_tokens(self, grid: tuple[int, int]) -> int:
        """Tokens of a picture whose local tiles form ``grid`` (columns, rows)."""
        settings = self.settings
        side = tile_side(settings.image_size, settings.patch_size, settings.downsample_ratio)
        return image_token_count(grid, side, settings.tile_tag)

    def _segments(
        self, conversations: Any, prompts: Any, images: Pictures, system_prompt: str
    ) -> list[tuple[Segment, ...]]:
        """The segments of every row with all pictures in place."""
        if (conversations is None) == (prompts is None):
            raise RequestError("give either conversations or a prompt (text)")
        if prompts is not None and system_prompt:
            raise RequestError("system_prompt belongs to conversations; a prompt is formatted already")
        inputs = split_rows(conversations if prompts is None else prompts)
        images = listed(images)
        per_row = pictures_per_row(images, len(inputs))
        beside = per_row or [images] * len(inputs)
        if prompts is None:
            rows = [
                conversation_segments(
                    messages,
                    sft_format=self.settings.sft_format,
                    image_token=self.settings.image_token,
                    eos_token=cast(str, self.tokenizer.eos_token),
                    images=pictures,
                    system_prompt=system_prompt,
                )
                for messages, pictures in zip(inputs, beside, strict=True)
            ]
        else:
            rows = [
                prompt_segments(
                    text.removeprefix(self._bos_token), image_token=self.settings.image_token, images=pictures
                )
                for text, pictures in zip(inputs, beside, strict=True)
            ]
        return self._fill(rows, per_row or deal_pictures(images or (), rows, self.settings.image_token))

    def _fill(self, rows: list[tuple[Segment, ...]], pictures: Sequence[Pictures]) -> list[tuple[Segment, ...]]:
        names = ["the conversation"] if len(rows) == 1 else [f"conversation {index}" for index in range(len(rows))]
        return [fill_pictures(row, given or (), name) for row, given, name in zip(rows, pictures, names, strict=True)]

    @property
    def _bos_token(self) -> str:
        return cast(str, self.tokenizer.bos_token or "")

    def _process(self, segments: Sequence[Segment], inference_mode: bool) -> ProcessedPrompt:
        crop = sum(segment.is_picture for segment in segments) <= self.settings.max_cropped_images
        tiles = [self._tiles(load_image(segment.picture), crop=crop) for segment in segments if segment.is_picture]
        counts = iter([self.num_image_tokens(tile.grid) for tile in tiles])
        ids: list[int] = [] if self.tokenizer.bos_token_id is None else [cast(int, self.tokenizer.bos_token_id)]
        labels, mask = list(ids), [False] * len(ids)
        for segment in segments:
            words = [self.image_token_id] * next(counts) if segment.is_picture else self._encode(segment.text)
            learnt = not segment.is_picture and (segment.is_answer or not self.settings.mask_prompt)
            ids += words
            labels += words if learnt else [self.settings.ignore_id] * len(words)
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
