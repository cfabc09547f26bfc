"""Turns of a conversation as the user made them, and the arrays a model reads; nothing here runs the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modelwright.checkpoints.load import Loaded
from modelwright.errors import RequestError
from modelwright.processing import load_image
from modelwright.processing.messages import PictureSlot, count_mismatch, read_turns

IMAGE = "<image>"
TEXT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}User: {{ message.content }}\n\n"
    "{% elif message.role == 'assistant' %}Assistant: {{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""DeepSeek-V2's chat format, for tokenizers that come without a template."""


@dataclass(frozen=True)
class Picture:
    """An opened picture and where it came from."""

    path: Path
    image: Image.Image


@dataclass(frozen=True)
class Turn:
    """One message; ``role`` is system, user or assistant."""

    role: str
    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A conversation as the engine takes it.

    Attributes:
        inputs: ``input_ids`` ``[1, tokens]`` and what belongs to them, on the CPU.
        image_tokens: how many of the tokens stand for rows of pictures.
    """

    inputs: dict[str, Tensor]
    image_tokens: int

    @property
    def tokens(self) -> int:
        """The prompt's length."""
        return self.inputs["input_ids"].shape[1]


def open_pictures(paths: Sequence[Path]) -> tuple[Picture, ...]:
    """The pictures in files; a RequestError names the first that is missing, too large or no picture."""
    return tuple(Picture(path, load_image(path)) for path in paths)


def refuse_pictures(model: str, family: str, count: int) -> RequestError:
    """The error for pictures shown to a model that reads text only."""
    return RequestError(
        f"{model} is a {family} model, which reads text only, and it was given {count} picture{'s' * (count != 1)}"
    )


def ask(text: str, pictures: tuple[Picture, ...], reads_pictures: bool) -> Turn:
    """A user's turn: pictures come first, one to a line, unless the text says with ``<image>`` where they go.

    Raises:
        RequestError: the text holds placeholders, and not as many as there are pictures.
    """
    text = text.strip()
    placeholders = text.count(IMAGE) if reads_pictures else 0
    if placeholders == 0:
        return Turn("user", f"{IMAGE}\n" * len(pictures) + text, pictures)
    if placeholders != len(pictures):
        raise count_mismatch("the prompt", placeholders, len(pictures), IMAGE)
    return Turn("user", text, pictures)


def encode(loaded: Loaded, turns: Sequence[Turn]) -> Prompt:
    """The arrays of a conversation that the assistant is to continue.

    Special tokens written in the text are those tokens.
    """
    if isinstance(loaded.processor, PreTrainedTokenizerBase):
        return prompt_of(_encode_text(loaded.processor, turns))
    return _with_pictures(loaded.processor, [_message(turn) for turn in turns])


def prompt_of(ids: Sequence[int]) -> Prompt:
    """Token ids, each of which is read: none of them is padding."""
    row = torch.tensor([ids], dtype=torch.int64)
    return Prompt({"input_ids": row, "attention_mask": torch.ones_like(row)}, image_tokens=0)


def encode_messages(loaded: Loaded, messages: Any) -> Prompt:
    """The arrays of a conversation in the official or OpenAI's form, see `modelwright.processing.messages`.

    A user's pictures come first, one to a line, unless the text says with ``<image>`` where they go.

    Raises:
        RequestError: a malformed message, pictures for a model that reads text only, or one that cannot be read.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RequestError("messages must be a list of objects, each with role and content")
    if not isinstance(loaded.processor, PreTrainedTokenizerBase):
        return _with_pictures(loaded.processor, [_with_places(message) for message in messages])
    turns = read_turns(messages, IMAGE, None)
    if any(isinstance(piece, PictureSlot) for turn in turns for piece in turn.pieces):
        raise RequestError(f"a {loaded.model.config.model_type} model reads text only, and the messages show pictures")
    return encode(loaded, [Turn(turn.role, "".join(map(str, turn.pieces))) for turn in turns])


def _with_places(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose pictures have their places in its text, if its content is text."""
    content, pictures = message.get("content"), message.get("images")
    if pictures is None or not isinstance(content, str):
        return message
    if not isinstance(pictures, list):
        raise RequestError(f"the images of a message must be a list of paths, got {pictures!r:.80}")
    return message | {"content": content if IMAGE in content else f"{IMAGE}\n" * len(pictures) + content}


def _with_pictures(processor: Any, messages: list[dict[str, Any]]) -> Prompt:
    batch = processor(conversations=[messages], inference_mode=True)
    names = ("input_ids", "attention_mask", "images", "images_seq_mask", "images_spatial_crop")
    return Prompt({name: batch[name] for name in names}, int(batch["images_seq_mask"].sum()))


def _encode_text(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[int]:
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    template = cast(str, tokenizer.chat_template or TEXT_TEMPLATE)
    text = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(str(text), add_special_tokens=False)


def _message(turn: Turn) -> dict[str, Any]:
    if turn.role != "user":
        return {"role": turn.role, "content": turn.text}
    return {"role": turn.role, "content": turn.text, "images": [picture.image for picture in turn.pictures]}
