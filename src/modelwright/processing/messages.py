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


@dataclass(frozen=True)
class PictureSlot:
    """The place of a picture; ``picture`` is None where it is given beside the conversation."""

    picture: Any = None


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
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise RequestError("a conversation must be a non-empty list of messages, each with 'role' and 'content'")
    turns = [_read_turn(index, message, image_token, images) for index, message in enumerate(messages)]
    if not system_prompt.strip():
        return turns
    if turns[0].role == "system":
        raise RequestError("system_prompt was given, and messages[0] is a system message too: keep one of them")
    return [Turn("system", (system_prompt.strip(),)), *turns]


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
        pieces = _join([_read_part(f"messages[{index}].content[{number}]", p) for number, p in enumerate(content)])
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


def _read_part(where: str, part: Any) -> str | PictureSlot:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "image_url":
        address = part.get("image_url")
        address = address.get("url") if isinstance(address, Mapping) else address
        if address is None:
            raise RequestError(f"{where} is an image_url part without a url")
        return PictureSlot(address)
    if kind == "image":
        encoded = part.get("base64")
        sources = [part[key] for key in ("image", "path", "url") if part.get(key) is not None]
        return PictureSlot(f"data:;base64,{encoded}" if encoded is not None else next(iter(sources), None))
    raise RequestError(f"{where} must be a part of type text, image_url or image, got {part!r:.80}")


def _join(parts: list[str | PictureSlot]) -> list[str | PictureSlot]:
    """The parts with a newline between neighbours that do not bring white space; white space at both ends removed."""
    joined: list[str | PictureSlot] = []
    for part in parts:
        if part == "":
            continue
        if joined and not _is_space(joined[-1], -1) and not _is_space(part, 0):
            joined.append("\n")
        joined.append(part)
    words = [index for index, part in enumerate(joined) if not isinstance(part, str) or part.strip()]
    kept = joined[words[0] : words[-1] + 1] if words else []
    if kept and isinstance(kept[0], str):
        kept[0] = kept[0].lstrip()
    if kept and isinstance(kept[-1], str):
        kept[-1] = kept[-1].rstrip()
    return kept


def _is_space(part: str | PictureSlot, index: int) -> bool:
    return isinstance(part, str) and part[index].isspace()
