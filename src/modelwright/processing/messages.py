"""Messages as callers write them, read into turns of words and pictures; nothing here knows a chat format.

Two forms are accepted. In the official form ``content`` is a string, and ``<image>`` in a user's string is a
placeholder only when the caller speaks of pictures: the message has an ``images`` key, or pictures are given beside the
conversation (then these are used, and the ``images`` keys are not opened). In OpenAI's form ``content`` is a list of
parts, a picture is a part of its own, and ``<image>`` in a text part is always text.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelwright.errors import RequestError
from modelwright.processing.contents import with_lines
from modelwright.processing.templates import words_in

Message = Mapping[str, Any]
Conversation = Sequence[Message]

USER_ROLES = ("user", "<|User|>")
ASSISTANT_ROLES = ("assistant", "<|Assistant|>")
SYSTEM_ROLES = ("system", "deepseekapi-sys")
_ROLES = {
    **dict.fromkeys(SYSTEM_ROLES, "system"),
    **dict.fromkeys(USER_ROLES, "user"),
    **dict.fromkeys(ASSISTANT_ROLES, "assistant"),
}

_TEXT_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""Roles that templates for text know; besides these, any that a template names."""


DETAILS = ("auto", "low", "high")
"""How closely a picture is looked at, in OpenAI's words."""


@dataclass(frozen=True)
class PictureSlot:
    """The place of a picture.

    Attributes:
        picture: None where it is given beside the conversation.
        detail: one of `DETAILS`. Low is the global view alone, high is local tiles too, however many pictures there
            are, and auto is what the model was trained on: local tiles where there are few pictures.
    """

    picture: Any = None
    detail: str = "auto"


@dataclass(frozen=True)
class Turn:
    """One message: ``role`` is system, user or assistant; ``pieces`` are words and picture slots in order."""

    role: str
    pieces: tuple[str | PictureSlot, ...]


def read_turns(
    messages: Conversation, image_token: str, images: Sequence[Any] | None, system_prompt: str = ""
) -> list[Turn]:
    """Check and read one conversation.

    Args:
        images: the pictures given beside it; None when the caller speaks of none.
        system_prompt: becomes the first turn.

    Raises:
        RequestError: a malformed message, or one whose placeholders and own ``images`` differ in number.
    """
    _require_messages(messages)
    turns = [_read_turn(index, message, image_token, images) for index, message in enumerate(messages)]
    if not system_prompt.strip():
        return turns
    if turns[0].role == "system":
        raise RequestError("system_prompt was given, and messages[0] is a system message too: keep one of them")
    return [Turn("system", (system_prompt.strip(),)), *turns]


def read_text_messages(messages: Conversation, family: str, template: str) -> list[dict[str, Any]]:
    """Check messages of words, for a model that reads them by a chat template.

    What a message says stays as it is, white space at its ends included; parts of OpenAI's form are joined by lines.

    Raises:
        RequestError: a malformed message, a role that neither `template` nor anybody knows, or a picture.
    """
    _require_messages(messages)
    return [_read_words(index, message, family, template) for index, message in enumerate(messages)]


def split_placeholders(text: str, image_token: str) -> list[str | PictureSlot]:
    """``text`` with every image token replaced by an open slot; empty words are left out."""
    pieces: list[str | PictureSlot] = []
    for number, words in enumerate(text.split(image_token)):
        pieces += [PictureSlot()] * (number > 0) + [words] * bool(words)
    return pieces


def count_mismatch(where: str, placeholders: int, pictures: int, image_token: str) -> RequestError:
    """The error for two counts that must agree."""
    return RequestError(
        f"{where}: {placeholders} {image_token} placeholder{'s' * (placeholders != 1)} but "
        f"{pictures} picture{'s' * (pictures != 1)}; there must be as many of one as of the other"
    )


def _require_messages(messages: Conversation) -> None:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise RequestError("a conversation must be a non-empty list of messages, each with 'role' and 'content'")


def _read_words(index: int, message: Message, family: str, template: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or "role" not in message or not {"content", "tool_calls"} & message.keys():
        raise RequestError(f"messages[{index}] must be a mapping with 'role' and 'content', got {message!r:.80}")
    role, content = message["role"], message.get("content")
    known = {name: name for name in _TEXT_ROLES} | {name: name for name in words_in(template)} | _ROLES
    if not isinstance(role, str) or role not in known:
        roles = dict.fromkeys((*_TEXT_ROLES, *_ROLES))
        raise RequestError(f"messages[{index}] has role {role!r}: it must be one of {', '.join(roles)}")
    if isinstance(content, Iterable) and not isinstance(content, str):
        parts = with_lines([read_part(f"messages[{index}].content[{n}]", part) for n, part in enumerate(content)])
        if message.get("images") or any(isinstance(part, PictureSlot) for part in parts):
            raise RequestError(f"a {family} model reads text only, and the messages show pictures")
        content = "".join(map(str, parts))
    elif content is not None and not isinstance(content, str):
        raise RequestError(f"messages[{index}].content must be a string or a list of parts, not {content!r:.80}")
    elif message.get("images"):
        raise RequestError(f"a {family} model reads text only, and the messages show pictures")
    words = {} if content is None and message.get("tool_calls") else {"content": content or ""}
    return {**message, "role": known[role]} | words


def _read_turn(index: int, message: Message, image_token: str, images: Sequence[Any] | None) -> Turn:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise RequestError(f"messages[{index}] must be a mapping with 'role' and 'content', got {message!r:.80}")
    role = _ROLES.get(message["role"])
    if role is None:
        raise RequestError(f"messages[{index}] has role {message['role']!r}: it must be one of {', '.join(_ROLES)}")
    if role == "system" and index > 0:
        raise RequestError(f"the system message must be the first, but it is messages[{index}]")
    content = message["content"]
    if content is None or isinstance(content, str):
        pieces = _string_pieces(index, role, message, image_token, images)
    elif isinstance(content, Iterable):
        pieces = _join([read_part(f"messages[{index}].content[{number}]", p) for number, p in enumerate(content)])
    else:
        raise RequestError(f"messages[{index}].content must be a string or a list of parts, not {content!r:.80}")
    if role != "user" and any(isinstance(piece, PictureSlot) for piece in pieces):
        raise RequestError(f"messages[{index}] has role {message['role']!r}: only a user may show pictures")
    return Turn(role, tuple(pieces))


def _string_pieces(
    index: int, role: str, message: Message, image_token: str, images: Sequence[Any] | None
) -> list[str | PictureSlot]:
    content, own = (message["content"] or "").strip(), message.get("images")
    if role != "user" or (images is None and own is None):
        return [content] if content else []
    pieces = split_placeholders(content, image_token)
    if images or own is None:
        return pieces
    places = sum(isinstance(piece, PictureSlot) for piece in pieces)
    if places != len(own):
        raise count_mismatch(f"messages[{index}]", places, len(own), image_token)
    supply = iter(own)
    return [PictureSlot(next(supply)) if isinstance(piece, PictureSlot) else piece for piece in pieces]


def read_part(where: str, part: Any) -> str | PictureSlot:
    """One part of OpenAI's form; a picture without a source is one that is given beside the conversation.

    Args:
        where: what an error calls it.

    Raises:
        RequestError: it is none.
    """
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "image_url":
        given = part.get("image_url")
        address, detail = (given.get("url"), given.get("detail")) if isinstance(given, Mapping) else (given, None)
        if address is None:
            raise RequestError(f"{where} is an image_url part without a url")
        return PictureSlot(address, _read_detail(where, detail))
    if kind == "image":
        encoded = part.get("base64")
        sources = [part[key] for key in ("image", "path", "url") if part.get(key) is not None]
        picture = f"data:;base64,{encoded}" if encoded is not None else next(iter(sources), None)
        return PictureSlot(picture, _read_detail(where, part.get("detail")))
    raise RequestError(f"{where} must be a part of type text, image_url or image, got {part!r:.80}")


def _read_detail(where: str, detail: Any) -> str:
    if detail is None:
        return "auto"
    if detail not in DETAILS:
        raise RequestError(f"{where}: detail must be one of {', '.join(DETAILS)}, got {detail!r:.80}")
    return detail


def _join(parts: list[str | PictureSlot]) -> list[str | PictureSlot]:
    """The parts joined by lines, white space at both ends removed."""
    joined = with_lines(parts)
    words = [index for index, part in enumerate(joined) if not isinstance(part, str) or part.strip()]
    kept = joined[words[0] : words[-1] + 1] if words else []
    if kept and isinstance(kept[0], str):
        kept[0] = kept[0].lstrip()
    if kept and isinstance(kept[-1], str):
        kept[-1] = kept[-1].rstrip()
    return kept
