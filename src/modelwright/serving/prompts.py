"""Conversations to what the engine takes: one way for a terminal's turns, a file's lines and a server's requests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelwright.checkpoints.folder import Checkpoint
from modelwright.errors import RequestError
from modelwright.families import resolve
from modelwright.processing import marks
from modelwright.processing.batching import ProcessedPrompt
from modelwright.processing.messages import PictureSlot, read_text_messages, read_turns
from modelwright.processing.plain_words import encode_words
from modelwright.processing.templates import Rendering, pick_template, render, turn_ends
from modelwright.processing.tokenizer import read_chat_templates
from modelwright.serving.adapted import words_of
from modelwright.serving.load import Loaded
from modelwright.serving.template_trial import try_template

IMAGE = "<image>"
"""Where a picture goes, in the words of a message that brings pictures."""
AS_IT_COMES = Rendering()
"""Messages printed by the model's own template, and nothing asked of it."""


def encode_messages(loaded: Loaded, messages: Any, how: Rendering = AS_IT_COMES) -> ProcessedPrompt:
    """A conversation that the assistant is to continue, in the official or OpenAI's form (`processing.messages`).

    Where the last message is the assistant's, the model goes on with its words. A user's pictures come first, one to a
    line, unless the text says with ``<image>`` where they go. Special tokens written in the text are those tokens.

    Raises:
        RequestError: a malformed message, pictures for a model that reads text only, or one that cannot be read; no
            chat template, or one that cannot print the messages.
    """
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise RequestError("messages must be a list of objects, each with role and content")
    if loaded.checkpoint.reads_pictures:
        return loaded.processor.process_messages([_with_places(message) for message in messages], how)
    return _encode_words(loaded, messages, how)


def pictures_in(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What the pictures of a conversation that `encode_messages` has read are given as, in their order."""
    turns = read_turns([_with_places(message) for message in messages], IMAGE, None)
    return [piece.picture for turn in turns for piece in turn.pieces if isinstance(piece, PictureSlot)]


def encode_text(loaded: Loaded, text: str) -> ProcessedPrompt:
    """Text as it is, in no chat format, with the marks that the tokenizer puts around a text."""
    return ProcessedPrompt.of_tokens(marks.encode_text(loaded.tokenizer, text), text)


def read_template(asked: str | None) -> str | None:
    """The Jinja template in the file that ``--chat-template`` names; what is no file is the name of a template.

    Raises:
        RequestError: a path to no file, or one that holds no text.
    """
    if asked is None:
        return None
    path = Path(asked).expanduser()
    try:
        if path.is_file():
            return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"chat_template {asked} cannot be read: {error}", field="chat_template") from error
    if asked != path.name or path.suffix:
        raise RequestError(f"chat_template {asked}: there is no such file", field="chat_template")
    return asked


def require_template(checkpoint: Checkpoint, asked: str | None) -> None:
    """Raise a RequestError where a conversation with this checkpoint could not be printed; no weight is read."""
    if not checkpoint.reads_pictures:
        _template_of(checkpoint, read_chat_templates(words_of(checkpoint)), Rendering(chat_template=asked))


def ends_of_turns(loaded: Loaded, asked: str | None) -> tuple[int, ...]:
    """The token at which an answer ends by the template that prints conversations with a model; none of many."""
    if loaded.checkpoint.reads_pictures and asked is None:
        return ()  # its own format has the tokenizer's end
    familys = loaded.checkpoint.record.chat_template
    return turn_ends(loaded.tokenizer, None if familys is None else resolve(familys), asked)


def try_out(checkpoint: Checkpoint, asked: str | None) -> None:
    """Try the template that came with a checkpoint, or was asked for, before strangers' messages are printed by it.

    Raises:
        CheckpointError: it does what no template may (`template_trial`).
    """
    own = read_chat_templates(words_of(checkpoint))
    template = None if own is None and asked is None else pick_template(own, asked, with_tools=False)
    if template is not None:
        try_template(template, {"bos_token": "", "eos_token": ""})


def _encode_words(loaded: Loaded, messages: list[Mapping[str, Any]], how: Rendering) -> ProcessedPrompt:
    """Messages of words, by a chat template."""
    tokenizer = loaded.tokenizer
    template = _template_of(loaded.checkpoint, tokenizer.chat_template, how)
    text = render(tokenizer, template, read_text_messages(messages, loaded.checkpoint.family, template), how)
    return ProcessedPrompt.of_tokens(encode_words(text, tokenizer), text)


def _template_of(checkpoint: Checkpoint, own: Any, how: Rendering) -> str:
    """The template of a model that reads text only: the one asked for, its folder's, or its family's."""
    template, familys = pick_template(own, how.chat_template, bool(how.tools)), checkpoint.record.chat_template
    if template is None and familys is not None:
        template = resolve(familys)
    if template is None:
        raise RequestError(
            f"{words_of(checkpoint)} has no chat template, neither chat_template.jinja nor chat_template in "
            "tokenizer_config.json, so messages cannot be printed as this model reads them: give one with "
            "--chat-template FILE"
        )
    return template


def _with_places(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message whose pictures have their places in its text, if its content is text."""
    content, pictures = message.get("content"), message.get("images")
    if pictures is None or not isinstance(content, str):
        return message
    if not isinstance(pictures, list):
        raise RequestError(f"the images of a message must be a list of paths, got {pictures!r:.80}")
    return {**message, "content": content if IMAGE in content else f"{IMAGE}\n" * len(pictures) + content}
