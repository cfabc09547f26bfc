"""Turns to the segments a model reads (roles, separators, answers), and the same as a Jinja template; no tokenizer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelwright.errors import ConfigError
from modelwright.processing.messages import (
    ASSISTANT_ROLES,
    USER_ROLES,
    Conversation,
    PictureSlot,
    Turn,
    count_mismatch,
    read_turns,
    split_placeholders,
)

LITERAL = "\ue000image\ue000"
"""Stands for an ``<image>`` that is text while a chat template prints messages; of characters for private use."""


@dataclass(frozen=True)
class Segment:
    """A stretch of the prompt that is tokenised on its own.

    Attributes:
        text: what it prints; for a picture the image token.
        is_picture: stands for a picture, and becomes that picture's tokens.
        picture: the picture, None while it is still to be given.
        detail: how closely it is looked at (`messages.PictureSlot`).
        is_answer: the assistant's words and their end, which training learns.
        turn: of an answer, which turn it is, from 0.
    """

    text: str
    is_picture: bool = False
    picture: Any = None
    detail: str = "auto"
    is_answer: bool = False
    turn: int | None = None


@dataclass(frozen=True)
class ChatFormat:
    """How turns are printed; with ``pictures_only`` a user turn is its pictures, one to a line, without its words."""

    question: str
    empty_question: str
    header: str
    pictures_only: bool = False


CHAT_FORMATS = {
    "deepseek": ChatFormat("<|User|>: {}\n\n", "<|User|>:", "<|Assistant|>:"),
    "plain": ChatFormat("{}", "", ""),
    "alignment": ChatFormat("{}", "", "", pictures_only=True),
}


def chat_format(name: str) -> ChatFormat:
    """The format called ``name``; a ConfigError lists the ones there are."""
    if name not in CHAT_FORMATS:
        raise ConfigError(f"sft_format {name!r} is unknown: it must be one of {', '.join(CHAT_FORMATS)}")
    return CHAT_FORMATS[name]


def conversation_segments(
    messages: Conversation,
    *,
    sft_format: str = "deepseek",
    image_token: str = "<image>",
    eos_token: str = "<｜end▁of▁sentence｜>",
    images: Sequence[Any] | None = None,
    system_prompt: str = "",
) -> tuple[Segment, ...]:
    """One conversation without its begin-of-sentence token; pictures given beside it are still to be filled in.

    The system text comes first. A conversation that ends with a question is continued by the assistant's header, and
    so is one that ends with an empty answer, which then has its end of sentence too. ``images`` is only asked whether
    pictures are given beside the conversation (see `messages`); `fill_pictures` puts them in.
    """
    turns = read_turns(messages, image_token, images, system_prompt)
    return turn_segments(turns, sft_format=sft_format, image_token=image_token, eos_token=eos_token)


def turn_segments(
    turns: Sequence[Turn], *, sft_format: str, image_token: str, eos_token: str, continued: bool = True
) -> tuple[Segment, ...]:
    """The segments of turns; with ``continued`` the assistant's header follows a last question."""
    chat = chat_format(sft_format)
    writer = _Writer(image_token)
    for number, turn in enumerate(turns):
        if turn.role == "user":
            _write_question(writer, chat, turn.pieces)
            continue
        words = "".join(piece for piece in turn.pieces if isinstance(piece, str))
        if turn.role == "assistant":
            writer.text(chat.header)
            writer.text(words, answer_of=number)
            writer.text(eos_token, answer_of=number)
        else:
            writer.text(words)
    if continued and turns[-1].role == "user":
        writer.text(chat.header)
    return tuple(writer.segments)


def prompt_segments(
    prompt: str, *, image_token: str = "<image>", images: Sequence[Any] | None = None
) -> tuple[Segment, ...]:
    """Text that is formatted already; ``<image>`` in it is a placeholder when ``images`` is given, if only empty."""
    writer = _Writer(image_token)
    writer.pieces([prompt] if images is None else split_placeholders(prompt, image_token))
    return tuple(writer.segments)


def marked_messages(
    messages: Conversation, image_token: str = "<image>", images: Sequence[Any] | None = None
) -> list[dict[str, Any]]:
    """Messages for a chat template, in which ``<image>`` stands for a picture wherever it is printed.

    An ``<image>`` that is text is written as `LITERAL` instead, and `unmarked_segments` undoes that. Which of them are
    text, and what ``images`` is asked for, is said in `messages`.
    """
    return [{**message, "content": _marked(message, image_token, images is not None)} for message in messages]


def _marked(message: Mapping[str, Any], image_token: str, beside: bool) -> Any:
    content = message["content"]
    shows = message["role"] in USER_ROLES and (beside or message.get("images") is not None)
    if content is None or isinstance(content, str):
        return content if content is None or shows else content.replace(image_token, LITERAL)
    parts = [part if isinstance(part, Mapping) else {"type": "text", "text": part} for part in content]
    return [
        {"type": "text", "text": part["text"].replace(image_token, LITERAL)}
        if part.get("type") == "text"
        else {"type": "image"}
        for part in parts
    ]


def unmarked_segments(text: str, image_token: str = "<image>") -> tuple[Segment, ...]:
    """What a template printed of `marked_messages`, pictures still to be filled in."""
    writer = _Writer(image_token)
    pieces = split_placeholders(text, image_token)
    writer.pieces(piece.replace(LITERAL, image_token) if isinstance(piece, str) else piece for piece in pieces)
    return tuple(writer.segments)


def count_open(segments: Iterable[Segment]) -> int:
    """How many pictures are still to be given."""
    return sum(segment.is_picture and segment.picture is None for segment in segments)


def fill_pictures(segments: Sequence[Segment], images: Sequence[Any], where: str) -> tuple[Segment, ...]:
    """Put ``images`` into the open places, in order.

    Raises:
        RequestError: there are not as many pictures as places; both counts are named.
    """
    if count_open(segments) != len(images):
        image_token = next((segment.text for segment in segments if segment.is_picture), "<image>")
        raise count_mismatch(where, count_open(segments), len(images), image_token)
    supply = iter(images)
    return tuple(
        replace(segment, picture=next(supply)) if segment.is_picture and segment.picture is None else segment
        for segment in segments
    )


def jinja_chat_template(sft_format: str = "deepseek", image_token: str = "<image>") -> str:
    """A template for ``tokenizer.apply_chat_template`` that prints a conversation as its segments print it.

    It begins with the begin-of-sentence token. The header after a last question is printed with
    ``add_generation_prompt=True``.
    """
    chat = chat_format(sft_format)
    before, after = chat.question.split("{}")
    question = f"{before!r} + text + {after!r} if text else {chat.empty_question!r}"
    if chat.pictures_only:
        line = image_token + "\n"
        question = f"{line!r} * ([text.count({image_token!r}), 1] | max)"
    names = {
        "QUESTION": question,
        "HEADER": repr(chat.header),
        "IMAGE": repr(image_token),
        "USER": repr(list(USER_ROLES)),
        "ASSISTANT": repr(list(ASSISTANT_ROLES)),
    }
    template = _TEMPLATE
    for name, value in names.items():
        template = template.replace(name, value)
    return template


_TEMPLATE = """\
{%- macro render(content) -%}
  {%- set joined = namespace(text='') -%}
  {%- if content is string -%}{%- set joined.text = content -%}
  {%- elif content -%}
    {%- for part in content -%}
      {%- set piece = part if part is string else part.text if part.type == 'text' else IMAGE -%}
      {%- if joined.text and piece and not joined.text[-1].isspace() and not piece[0].isspace() -%}
        {%- set joined.text = joined.text + '\\n' -%}
      {%- endif -%}
      {%- set joined.text = joined.text + piece -%}
    {%- endfor -%}
  {%- endif -%}
  {{- joined.text | trim -}}
{%- endmacro -%}
{{- bos_token -}}
{%- for message in messages -%}
  {%- set text = render(message.content) -%}
  {%- if message.role in USER -%}{{- QUESTION -}}
  {%- elif message.role in ASSISTANT -%}
    {{- HEADER + text -}}{%- if text or not loop.last -%}{{- eos_token -}}{%- endif -%}
  {%- else -%}{{- text -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1].role in USER -%}{{- HEADER -}}{%- endif -%}
"""


def _write_question(writer: "_Writer", chat: ChatFormat, pieces: Sequence[str | PictureSlot]) -> None:
    if chat.pictures_only:
        slots = [piece for piece in pieces if isinstance(piece, PictureSlot)] or [PictureSlot()]
        pieces = [piece for slot in slots for piece in (slot, "\n")]
    if not pieces:
        writer.text(chat.empty_question)
        return
    before, after = chat.question.split("{}")
    writer.pieces([before, *pieces, after])


class _Writer:
    """Collects segments; words that follow each other are joined, because they are tokenised together."""

    def __init__(self, image_token: str):
        self.image_token = image_token
        self.segments: list[Segment] = []
        self._joins = False  # whether the next words continue the last segment

    def pieces(self, pieces: Iterable[str | PictureSlot]) -> None:
        for piece in pieces:
            if isinstance(piece, str):
                self.text(piece)
            else:
                self.segments.append(Segment(self.image_token, True, piece.picture, piece.detail))
                self._joins = False

    def text(self, text: str, *, answer_of: int | None = None) -> None:
        """Words; an image token among them is cut after its first character, so that no tokenizer sees the token."""
        head, *others = text.split(self.image_token)
        self._append(head, answer_of)
        for words in others:
            self._append(self.image_token[:1], answer_of)
            self._joins = False
            self._append(self.image_token[1:] + words, answer_of)

    def _append(self, text: str, answer_of: int | None) -> None:
        if not text:
            return
        if self._joins and self.segments[-1].turn == answer_of:
            self.segments[-1] = replace(self.segments[-1], text=self.segments[-1].text + text)
        else:
            self.segments.append(Segment(text, is_answer=answer_of is not None, turn=answer_of))
        self._joins = True
