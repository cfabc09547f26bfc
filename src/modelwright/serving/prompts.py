"""Conversations to what the engine takes: one way for a terminal's turns, a file's lines and a server's requests."""

from collections.abc import Mapping
from typing import Any

from modelwright.errors import RequestError
from modelwright.processing.batching import ProcessedPrompt
from modelwright.processing.messages import PictureSlot, Turn, read_turns
from modelwright.serving.load import Loaded

IMAGE = "<image>"
"""Where a picture goes, in the words of a message that brings pictures."""
TEXT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}User: {{ message.content }}\n\n"
    "{% elif message.role == 'assistant' %}Assistant: {{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""DeepSeek-V2's chat format, for tokenizers that come without a template."""


def encode_messages(loaded: Loaded, messages: Any) -> ProcessedPrompt:
    """A conversation that the assistant is to continue, in the official or OpenAI's form (`processing.messages`).

    A user's pictures come first, one to a line, unless the text says with ``<image>`` where they go. Special tokens
    written in the text are those tokens.

    Raises:
        RequestError: a malformed message, pictures for a model that reads text only, or one that cannot be read.
    """
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise RequestError("messages must be a list of objects, each with role and content")
    if loaded.checkpoint.reads_pictures:
        return loaded.processor.process_one([_with_places(message) for message in messages])
    return _encode_turns(loaded, read_turns(messages, IMAGE, None))


def encode_text(loaded: Loaded, text: str) -> ProcessedPrompt:
    """Text as it is, in no chat format."""
    return ProcessedPrompt.of_tokens(loaded.tokenizer.encode(text), text)


def _encode_turns(loaded: Loaded, turns: list[Turn]) -> ProcessedPrompt:
    """Turns of words, by the tokenizer's chat template or DeepSeek-V2's."""
    if any(isinstance(piece, PictureSlot) for turn in turns for piece in turn.pieces):
        raise RequestError(f"a {loaded.checkpoint.family} model reads text only, and the messages show pictures")
    tokenizer = loaded.tokenizer
    messages = [{"role": turn.role, "content": "".join(map(str, turn.pieces))} for turn in turns]
    template = tokenizer.chat_template or TEXT_TEMPLATE
    text = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)
    return ProcessedPrompt.of_tokens(tokenizer.encode(text, add_special_tokens=False), text)


def _with_places(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message whose pictures have their places in its text, if its content is text."""
    content, pictures = message.get("content"), message.get("images")
    if pictures is None or not isinstance(content, str):
        return message
    if not isinstance(pictures, list):
        raise RequestError(f"the images of a message must be a list of paths, got {pictures!r:.80}")
    return {**message, "content": content if IMAGE in content else f"{IMAGE}\n" * len(pictures) + content}
