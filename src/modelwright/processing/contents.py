"""The two forms of a message's content, a text and a list of parts, and which of them a chat template prints.

Templates are written for one of them or for both. One that goes through parts prints nothing of a text, character by
character, and one that prints a text prints a list as Python writes it; neither raises. So it is tried.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
_WORD = "zq{}qz"
"""What stands for the words of a message while it is tried whether a template prints them."""


def with_lines(parts: list[Any]) -> list[Any]:
    """The parts, words and whatever stands for pictures, with a newline between neighbours that bring no white space.

    Empty words are left out.
    """
    joined: list[Any] = []
    for part in parts:
        if part == "":
            continue
        if joined and not is_space(joined[-1], -1) and not is_space(part, 0):
            joined.append("\n")
        joined.append(part)
    return joined


def is_space(part: Any, index: int) -> bool:
    """Whether a part is words with white space at `index`."""
    return isinstance(part, str) and part[index].isspace()


def as_printed(
    messages: Sequence[Message], show: Callable[[Sequence[Message]], str], image_token: str | None
) -> list[Message]:
    """Messages with their contents in the form of which a template prints the words, as given where both forms do.

    Args:
        messages: ``content`` is a text, None, or a list of ``{"type": "text", "text": ...}`` and of pictures, which
            have another type. Whatever is neither stays.
        show: prints messages by the template, and may raise anything.
        image_token: what stands for a picture in a text; None where no message shows one.
    """
    tried = [_with_words(message, _WORD.format(n)) for n, message in enumerate(messages)]
    unprinted = _unprinted(tried, show)
    if not unprinted:
        return list(messages)

    def turned(given: Sequence[Message], which: set[int]) -> list[Message]:
        return [_in_other_form(each, image_token) if n in which else each for n, each in enumerate(given)]

    return turned(messages, unprinted - _unprinted(turned(tried, unprinted), show))


def _with_words(message: Message, word: str) -> Message:
    """The message with another text, if it has any."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": word} if content.strip() else message
    if not isinstance(content, list) or not all(isinstance(part, Mapping) and "type" in part for part in content):
        return message
    others = [part for part in content if part["type"] != "text"]
    return {**message, "content": [*others, _text(word)]} if len(others) < len(content) else message


def _unprinted(tried: Sequence[Message], show: Callable[[Sequence[Message]], str]) -> set[int]:
    """The numbers of the messages whose words do not appear, or only as Python or JSON writes a list."""
    try:
        text = show(tried)
    except Exception:  # a template may raise anything
        text = ""
    words = {n: _WORD.format(n) for n, message in enumerate(tried) if _WORD.format(n) in str(message.get("content"))}
    return {n for n, word in words.items() if word not in text or re.search(rf"""(['"])text\1: ['"]{word}""", text)}


def _in_other_form(message: Message, image_token: str | None) -> Message:
    content = message["content"]
    if isinstance(content, list):
        pieces = [part["text"] if part["type"] == "text" else image_token or "" for part in content]
        return {**message, "content": "".join(with_lines(pieces))}
    pieces = content.split(image_token) if image_token else [content]
    parts = [_text(words) for words in pieces]
    pictures = [{"type": "image"} for _ in pieces[1:]]
    both = [part for pair in zip(parts, [*pictures, None], strict=True) for part in pair]
    return {**message, "content": [part for part in both if part and part.get("text") != ""]}


def _text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}
