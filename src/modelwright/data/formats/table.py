"""The formats by their names, and which of them a row is in."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from modelwright.configs.strict_json import NotJson, parse_json
from modelwright.data.examples import Content, PictureRef
from modelwright.data.formats.conversations import (
    read_alpaca,
    read_caption,
    read_conversations,
    read_messages,
    read_pair,
    read_query,
)
from modelwright.data.formats.fields import (
    CALLS,
    MEDIA,
    MESSAGE,
    PARTLY_LEARNED,
    PICTURES,
    THOUGHTS,
    TURNS,
    broken,
    is_given,
)
from modelwright.data.formats.pictures import PictureFolder
from modelwright.data.formats.plain import TOKENS, read_picture, read_text, read_tokens
from modelwright.data.rows import Row
from modelwright.errors import ConfigError

Reader = Callable[[Row, PictureFolder], Content]

FORMATS: Mapping[str, Reader] = {
    "text": read_text,
    "messages": read_messages,
    "ms-swift": read_messages,
    "llava": read_conversations,
    "sharegpt": read_conversations,
    "alpaca": read_alpaca,
    "query": read_query,
    "prompt": read_pair,
    "tokens": read_tokens,
    "megatron": read_tokens,
    "caption": read_caption,
    "picture": read_picture,
}
"""What reads a row of each format. Formats that differ in what stands beside their messages have one reader, so that a
file may hold rows with pictures and rows without."""
_OWN: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "messages": ("messages",),
    "ms-swift": ("messages",),
    "llava": ("conversations", "conversation"),
    "sharegpt": ("conversations", "conversation"),
    "alpaca": ("instruction", "input", "output"),
    "query": ("query", "response"),
    "prompt": ("prompt", "completion"),
    "tokens": TOKENS,
    "megatron": TOKENS,
    "caption": ("caption", "text"),
    "picture": (),
}
"""The names of a row that its format reads, beside those that may stand in any and are read or refused."""
_BESIDE = (*PICTURES, *MEDIA, *CALLS, *TURNS)
_OF_MESSAGES = (*MESSAGE, *PARTLY_LEARNED, *CALLS, *THOUGHTS, "image", *MEDIA)
_MESSAGES = ("messages", "conversations", "prompt", "completion")


def reader_of(name: str) -> Reader:
    """The reader of a format; a ConfigError lists the names there are."""
    if name not in FORMATS:
        raise ConfigError(f"format must be auto or one of {', '.join(FORMATS)}, got {name!r}", field="format")
    return FORMATS[name]


def parsed(format: str, row: Row) -> Row:
    """The row with its lists where it holds them as strings of JSON, as cells do, and columns of many tables.

    Of the names that the format reads only those that never hold words, where the string begins as a list or an object
    does; one without words is nothing.

    Raises:
        BrokenRow: such a string is no JSON.
    """
    if not isinstance(row.value, Mapping):
        return row
    found = dict(row.value)
    for name in _NESTED.intersection(found).intersection((*_OWN[format], *_BESIDE)):
        text = found[name].strip() if isinstance(found[name], str) else None
        if text in ("", "null"):
            found[name] = None
        elif text and text[0] in "[{":
            try:
                found[name] = parse_json(text.encode("utf-8", "surrogatepass"))
            except NotJson as error:
                raise broken(row, f"{name} begins as a list or an object of JSON does: {error}") from None
    return replace(row, value=found)


def unread(format: str, value: Any) -> list[str]:
    """The names of a row, and those of its messages as ``messages[].name``, that change nothing of what is learned."""
    if not isinstance(value, Mapping):
        return []
    beside = TURNS if format in ("text", "tokens", "megatron", "picture") else ()
    names = _others(value, {*_OWN[format], *_BESIDE}.difference(beside))
    for name in _MESSAGES:
        messages = value.get(name) if name in _OWN[format] else None
        for message in messages if isinstance(messages, list | tuple) else ():
            names += [f"{name}[].{other}" for other in _others(message, _OF_MESSAGES)]
    return [*dict.fromkeys(names)]


_NESTED = frozenset(("messages", "conversations", "conversation", "history", "images", "objects", *TOKENS))
"""Names under which a string cannot stand for words."""


def _others(value: Any, names: Iterable[str]) -> list[str]:
    """The names under which a mapping has anything, without those of ``names``."""
    if not isinstance(value, Mapping):
        return []
    return [str(name) for name, held in value.items() if name not in names and is_given(held)]


def find_format(value: Any) -> str | None:
    """The format of a row by what it holds; None where it is none of them."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, np.ndarray):
        return "tokens"
    if isinstance(value, PictureRef):
        return "picture"
    if not isinstance(value, Mapping):
        return None
    names = value.keys()
    beside = {"images", "image", "objects"} & names
    if "input_ids" in names:
        return "tokens"
    if "messages" in names:
        return "ms-swift" if beside else "messages"
    if {"conversations", "conversation"} & names:
        return "llava" if beside else "sharegpt"
    return next((format for needed, format in _BY_NAMES if needed <= names), None)


_BY_NAMES = (
    ({"instruction", "output"}, "alpaca"),
    ({"query", "response"}, "query"),
    ({"prompt", "completion"}, "prompt"),
    ({"image", "caption"}, "caption"),
    ({"image", "text"}, "caption"),
    ({"text"}, "text"),
    ({"image"}, "picture"),
)
"""The names that a row of a format has, those of more names first."""
