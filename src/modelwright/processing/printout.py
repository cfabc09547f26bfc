"""Conversations as the official DeepSeek-VL2 code prints them for people: its ``sft_format`` and its templates.

What models read differs in blanks and separators, as it does in the official code, and is made in `chat`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Self

from modelwright.errors import ConfigError


class SeparatorStyle(IntEnum):
    """How a conversation is printed: with roles and separators, its words alone, or a picture and its caption."""

    DeepSeek = 1
    PLAIN = 2
    ALIGNMENT = 3


@dataclass
class ConversationTemplate:
    """A conversation that grows, and how it is printed; names are the official ones.

    Attributes:
        messages: pairs ``[role, words]``; words may be a tuple of words and pictures.
        sep, sep2: follow the messages in turn.
        offset: how many messages come from examples and are not shown.
        stop_str, stop_token_ids: what ends an answer.
    """

    name: str
    roles: tuple[str, str]
    sep: str
    sep2: str
    sep_style: SeparatorStyle
    stop_str: tuple[str, ...]
    stop_token_ids: tuple[int, ...] = ()
    system_template: str = "{system_message}"
    system_message: str = ""
    messages: list[Any] = field(default_factory=list)
    offset: int = 0

    def set_system_message(self, system_message: str) -> None:
        """What is printed first."""
        self.system_message = system_message

    def append_message(self, role: str, message: Any) -> None:
        """Another message."""
        self.messages.append([role, message])

    def update_last_message(self, message: Any) -> None:
        """Other words for the last message, which is begun without any while an answer is waited for."""
        self.messages[-1][1] = message

    def reset_message(self) -> None:
        """Forget the messages."""
        self.messages = []

    def copy(self) -> Self:
        """Another conversation with the same messages."""
        return replace(self, messages=[[role, message] for role, message in self.messages])

    def get_prompt(self) -> str:
        """The conversation as text; a last message without words leaves the role's header open."""
        separators, printed = (self.sep, self.sep2), ""
        system = self.system_template.format(system_message=self.system_message)
        if self.sep_style is SeparatorStyle.DeepSeek and system:
            printed = system + self.sep
        for place, (role, message) in enumerate(self.messages):
            words = message[0] if isinstance(message, tuple) else message
            if self.sep_style is SeparatorStyle.DeepSeek:
                printed += f"{role}: {words}{separators[place % 2]}" if words else f"{role}:"
            elif words:
                caption = self.sep_style is SeparatorStyle.ALIGNMENT and place % 2 == 0
                printed += ("<image>\n" if caption else words) + separators[place % 2]
        return printed


_END = "<｜end▁of▁sentence｜>"
_TEMPLATES = {
    "deepseek": ConversationTemplate(
        "deepseek", ("<|User|>", "<|Assistant|>"), "\n\n", _END, SeparatorStyle.DeepSeek, ("User:", _END)
    ),
    "plain": ConversationTemplate("plain", ("", ""), "", "", SeparatorStyle.PLAIN, ("</s>",)),
    "alignment": ConversationTemplate("alignment", ("", ""), "", "", SeparatorStyle.ALIGNMENT, ("</s>",)),
}


def new_template(sft_format: str) -> ConversationTemplate:
    """An empty conversation of a format; a ConfigError lists the formats."""
    if sft_format not in _TEMPLATES:
        raise ConfigError(f"sft_format {sft_format!r} is unknown: it must be one of {', '.join(_TEMPLATES)}")
    return _TEMPLATES[sft_format].copy()


def print_conversation(messages: Any, sft_format: str, system_prompt: str = "") -> str:
    """The official ``sft_format`` of messages; parts of OpenAI's form are joined by lines, pictures as ``<image>``."""
    template = new_template(sft_format)
    template.set_system_message(system_prompt)
    for message in messages:
        template.append_message(message["role"], _words(message["content"]).strip())
    return template.get_prompt().strip()


def _words(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part if isinstance(part, str) else _part(part) for part in content]
    return "\n".join(parts)


def _part(part: Mapping[str, Any]) -> str:
    return part["text"] if part.get("type") == "text" else "<image>"
