"""Conversations whose pictures are cut into tiles, to the arrays a model reads: what DeepSeek-VL2's processor does."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from modelwright.configs.tiling import image_token_count, tile_side
from modelwright.processing.batching import ProcessedPrompt
from modelwright.processing.chat import (
    Segment,
    conversation_segments,
    fill_pictures,
    jinja_chat_template,
    marked_messages,
    prompt_segments,
    turn_segments,
    unmarked_segments,
)
from modelwright.processing.image_processor import TileImageProcessor, Tiles
from modelwright.processing.images import load_image, picture_size
from modelwright.processing.messages import Conversation, PictureSlot, Turn, count_mismatch, read_turns
from modelwright.processing.plain_words import encode_words
from modelwright.processing.printout import print_conversation
from modelwright.processing.rows import Pictures, deal_pictures, listed, pictures_per_row, split_rows
from modelwright.processing.settings import check_settings
from modelwright.processing.special_tokens import add_special_tokens
from modelwright.processing.templates import Rendering, pick_template, render
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
        max_cropped_images: pictures are cut into local tiles when the conversation holds at most this many, unless a
            picture comes with a ``detail`` that says otherwise (`messages.PictureSlot`).

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
        """The settings that a ``processor_config.json`` holds, with `overrides` in their place; no other key is read.

        Raises:
            ConfigError: a setting that breaks its rule.
        """
        known = [field.name for field in fields(cls)]
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
        self.tiles = TileImageProcessor(
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
        return self.process([conversation], beside, inference_mode=inference_mode, system_prompt=system_prompt)[0]

    def process(
        self, conversations: Any, images: Pictures = None, *, inference_mode: bool = True, system_prompt: str = ""
    ) -> list[ProcessedPrompt]:
        """One conversation or a list of them.

        Args:
            images: the pictures given beside them: a picture or a list of them, handed out to the placeholders in
                order, or one such list for each conversation.
            inference_mode, system_prompt: as for `process_one`.

        Raises:
            RequestError: as `process_one`.
        """

        def read(messages: Conversation, pictures: Pictures) -> tuple[Segment, ...]:
            return conversation_segments(
                messages,
                sft_format=self.settings.sft_format,
                image_token=self.settings.image_token,
                eos_token=cast(str, self.tokenizer.eos_token),
                images=pictures,
                system_prompt=system_prompt,
            )

        inputs = split_rows(conversations)
        rows = self._rows(inputs, images, read)
        return [
            self._answered(row, print_conversation(messages, self.settings.sft_format, system_prompt), inference_mode)
            for messages, row in zip(inputs, rows, strict=True)
        ]

    def process_texts(
        self, texts: Any, images: Pictures = None, *, inference_mode: bool = True, marks: bool = True
    ) -> list[ProcessedPrompt]:
        """Text that is formatted already, or a list of it; ``<image>`` in it is text where no pictures are given.

        Every token is learnt but those of pictures, as officially.

        Args:
            images: as for `process`.
            inference_mode: whether the model is to continue a text; otherwise it ends with an end of sentence.
            marks: whether a text gets its beginning and its end, each of them once.

        Raises:
            RequestError: unreadable pictures, or counts of pictures and placeholders that differ.
        """

        def read(text: str, pictures: Pictures) -> tuple[Segment, ...]:
            text = text.removeprefix(self._bos_token) if marks else text
            return prompt_segments(text, image_token=self.settings.image_token, images=pictures)

        inputs = split_rows(texts)
        rows = self._rows(inputs, images, read)
        return [self._whole(row, text, inference_mode, marks) for text, row in zip(inputs, rows, strict=True)]

    def process_turns(
        self, turns: Sequence[Turn], learnt: Container[int], *, rest: bool = False, pixels: bool = True
    ) -> ProcessedPrompt:
        """A whole conversation to be learnt: no header follows a last question.

        Args:
            learnt: the turns of the assistant whose words and end are learnt, by their numbers.
            rest: whether all that is no answer is learnt too, but for pictures.
            pixels: whether pictures are decoded; otherwise only their sizes are read, and ``images`` holds no tile.

        Raises:
            RequestError: a picture that cannot be read.
        """
        settings = self.settings
        segments = turn_segments(
            turns,
            sft_format=settings.sft_format,
            image_token=settings.image_token,
            eos_token=cast(str, self.tokenizer.eos_token),
            continued=False,
        )

        def is_learnt(segment: Segment) -> bool:
            return rest if segment.turn is None else segment.turn in learnt

        return self._process(segments, "", begin=True, learnt=is_learnt, pixels=pixels)

    def process_completion(self, prompt: str, completion: str, *, learn_prompt: bool = False) -> ProcessedPrompt:
        """Text that is formatted already and what is to follow it, of which that and the end of sentence are learnt."""
        token, end = self.settings.image_token, cast(str, self.tokenizer.eos_token)
        read = prompt_segments(prompt.removeprefix(self._bos_token), image_token=token)
        answer = prompt_segments(completion.removesuffix(end) + end, image_token=token)
        answer = tuple(replace(segment, is_answer=True) for segment in answer)
        learnt = _all if learn_prompt else _answers
        return self._process((*read, *answer), "", begin=True, learnt=learnt)

    def process_messages(self, messages: Conversation, how: Rendering) -> ProcessedPrompt:
        """A conversation that the assistant is to continue, printed by a chat template where `how` asks for one.

        Raises:
            RequestError: as `process_one`, or the template cannot print the messages.
        """
        return self.process_printed([messages], None, how)[0] if how.needs_template else self.process_one(messages)

    def print_messages(self, conversations: Any, how: Rendering) -> Any:
        """What a chat template prints of a conversation, or a list of what it prints of several.

        Raises:
            RequestError: the template cannot print the messages.
        """
        token, template = self.settings.image_token, self._template(how)
        if isinstance(conversations, Sequence) and conversations and isinstance(conversations[0], Mapping):
            return render(self.tokenizer, template, conversations, how, token)
        return [render(self.tokenizer, template, messages, how, token) for messages in split_rows(conversations)]

    def process_printed(
        self,
        conversations: Any,
        images: Pictures,
        how: Rendering,
        *,
        inference_mode: bool = True,
        marks: bool = True,
    ) -> list[ProcessedPrompt]:
        """Conversations as a chat template prints them, with their pictures; what is printed is learnt as a text is.

        Args:
            conversations, images: as for `process`.
            inference_mode, marks: as for `process_texts`.

        Raises:
            RequestError: as `process_messages`.
        """
        token = self.settings.image_token
        template = self._template(how)

        def read(messages: Conversation, pictures: Pictures) -> tuple[Segment, ...]:
            turns = read_turns(messages, token, pictures)
            slots = [piece for turn in turns for piece in turn.pieces if isinstance(piece, PictureSlot)]
            text = render(self.tokenizer, template, marked_messages(messages, token, pictures), how, token)
            row = unmarked_segments(text.removeprefix(self._bos_token) if marks else text, token)
            if sum(one.is_picture for one in row) != len(slots):
                places = sum(one.is_picture for one in row)
                raise count_mismatch("what the chat template prints", places, len(slots), token)
            shown = iter(slots)
            return tuple(_filled(one, next(shown)) if one.is_picture else one for one in row)

        rows = self._rows(split_rows(conversations), images, read)
        return [self._whole(row, "".join(segment.text for segment in row), inference_mode, marks) for row in rows]

    def num_image_tokens(self, grid: tuple[int, int]) -> int:
        """Tokens of a picture whose local tiles form ``grid`` (columns, rows)."""
        settings = self.settings
        side = tile_side(settings.image_size, settings.patch_size, settings.downsample_ratio)
        return image_token_count(grid, side, settings.tile_tag)

    def encode(self, text: str) -> list[int]:
        """The tokens of words, without marks."""
        return encode_words(text, self.tokenizer)

    def _template(self, how: Rendering) -> str:
        return cast(str, pick_template(self.tokenizer.chat_template, how.chat_template, bool(how.tools)))

    def _rows(
        self, inputs: list[Any], images: Pictures, read: Callable[[Any, Pictures], tuple[Segment, ...]]
    ) -> list[tuple[Segment, ...]]:
        """The segments of every row, which `read` makes of it and of its pictures, with all pictures in place."""
        images = listed(images)
        per_row = pictures_per_row(images, len(inputs))
        rows = [read(*each) for each in zip(inputs, per_row or [images] * len(inputs), strict=True)]
        pictures = per_row or deal_pictures(images or (), rows, self.settings.image_token)
        names = ["the conversation"] if len(rows) == 1 else [f"conversation {index}" for index in range(len(rows))]
        return [fill_pictures(row, given or (), name) for row, given, name in zip(rows, pictures, names, strict=True)]

    @property
    def _bos_token(self) -> str:
        return cast(str, self.tokenizer.bos_token or "")

    def tokenize(self, segments: Sequence[Segment], *, begin: bool, end: bool, crop: bool) -> ProcessedPrompt:
        """Segments with their pictures, and the marks around them that are asked for; all is learnt but pictures.

        Args:
            crop: whether pictures are cut into local tiles.
        """
        marked = (*segments, Segment(cast(str, self.tokenizer.eos_token))) if end else tuple(segments)
        return self._process(marked, "", begin=begin, learnt=_all, crop=crop)

    def _answered(self, segments: tuple[Segment, ...], printout: str, inference_mode: bool) -> ProcessedPrompt:
        """A conversation, of which answers are learnt; for inference without the end of the last one."""
        end = cast(str, self.tokenizer.eos_token)
        if inference_mode and segments and segments[-1].is_answer:
            last = replace(segments[-1], text=segments[-1].text.removesuffix(end))
            segments = (*segments[:-1], last) if last.text else segments[:-1]
        return self._process(segments, printout, begin=True, learnt=_answers if self.settings.mask_prompt else _all)

    def _whole(
        self, segments: tuple[Segment, ...], printout: str, inference_mode: bool, marks: bool
    ) -> ProcessedPrompt:
        """A text, all of which is learnt."""
        end = self.tokenizer.eos_token
        if marks and not inference_mode and end and not (segments and segments[-1].text.endswith(end)):
            segments = (*segments, Segment(end))
        return self._process(segments, printout, begin=marks, learnt=_all)

    def _process(
        self,
        segments: Sequence[Segment],
        printout: str,
        *,
        begin: bool,
        learnt: Callable[[Segment], bool],
        crop: bool | None = None,
        pixels: bool = True,
    ) -> ProcessedPrompt:
        shown = [segment for segment in segments if segment.is_picture]
        trained = len(shown) <= self.settings.max_cropped_images
        crops = [{"low": False, "high": True}.get(one.detail, trained) if crop is None else crop for one in shown]
        look = self._tiles if pixels else self._outline
        tiles = [look(one.picture, cut) for one, cut in zip(shown, crops, strict=True)]
        counts = [self.num_image_tokens(tile.grid) for tile in tiles]
        supply, begins = iter(counts), begin and self.tokenizer.bos_token_id is not None
        ids: list[int] = [cast(int, self.tokenizer.bos_token_id)] if begins else []
        labels, mask = list(ids), [False] * len(ids)
        for segment in segments:
            words = [self.image_token_id] * next(supply) if segment.is_picture else self.encode(segment.text)
            counts_here = not segment.is_picture and learnt(segment)
            ids += words
            labels += words if counts_here else [self.settings.ignore_id] * len(words)
            mask += [segment.is_picture] * len(words)
        return ProcessedPrompt(
            text=(self._bos_token if begins else "") + "".join(segment.text for segment in segments),
            input_ids=np.array(ids, np.int64),
            labels=np.array(labels, np.int64),
            images_seq_mask=np.array(mask, bool),
            images=np.concatenate([tile.pixels for tile in tiles]) if tiles else self.tiles.blank(),
            images_spatial_crop=np.array([tile.grid for tile in tiles] or [(0, 0)], np.int64),
            num_image_tokens=tuple(counts),
            sft_format=printout,
            begins=begins,
        )

    def _tiles(self, picture: Any, crop: bool) -> Tiles:
        return self.tiles(load_image(picture), crop=crop)

    def _outline(self, picture: Any, crop: bool) -> Tiles:
        """The grid alone."""
        side = self.settings.image_size
        return Tiles(np.zeros((0, 3, side, side), np.float32), self.tiles.grid(picture_size(picture), crop=crop))


def _all(segment: Segment) -> bool:
    return True


def _answers(segment: Segment) -> bool:
    return segment.is_answer


def _filled(segment: Segment, slot: PictureSlot) -> Segment:
    return replace(segment, picture=slot.picture, detail=slot.detail)
