"""Messages of a conversation in OpenAI's form: five roles, and content that is text, nothing, or parts."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Detail = Literal["auto", "low", "high"]


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    """Words."""

    text: str


class RefusalPart(msgspec.Struct, tag_field="type", tag="refusal"):
    """Words with which the assistant declined."""

    refusal: str


class ImageUrl(msgspec.Struct):
    """A picture: a data URL, or an address where the server may fetch."""

    url: str
    detail: Detail | None = "auto"


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url"):
    """A picture in its place among the words."""

    image_url: ImageUrl | str


Part = TextPart | ImagePart | RefusalPart
Content = str | list[Part] | None


class FunctionCall(msgspec.Struct):
    """Which tool was called, and the JSON text of what it was called with."""

    name: str
    arguments: str = "{}"


class ToolCall(msgspec.Struct):
    """One call that the assistant made."""

    id: Annotated[str, Meta(min_length=1, max_length=256)]
    function: FunctionCall
    type: Literal["function"] = "function"


class SystemMessage(msgspec.Struct, tag_field="role", tag="system"):
    """What the assistant is to be."""

    content: Content = None
    name: str | None = None


class DeveloperMessage(msgspec.Struct, tag_field="role", tag="developer"):
    """OpenAI's later name for a system message."""

    content: Content = None
    name: str | None = None


class UserMessage(msgspec.Struct, tag_field="role", tag="user"):
    """What the user said and showed."""

    content: Content = None
    name: str | None = None


class AssistantMessage(msgspec.Struct, tag_field="role", tag="assistant"):
    """What the assistant said, thought and called."""

    content: Content = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class ToolMessage(msgspec.Struct, tag_field="role", tag="tool"):
    """What a tool answered."""

    tool_call_id: str
    content: Content = None
    name: str | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage
