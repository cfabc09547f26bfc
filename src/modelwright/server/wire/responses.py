"""``/v1/responses``: the request; replies and events are plain objects, made in `response_items`."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from modelwright.server.wire.chat import TemplateKwargs
from modelwright.server.wire.grounding import GroundingOptions
from modelwright.server.wire.messages import Detail
from modelwright.server.wire.sampling import DrawingFields

MOST_ITEMS = 4096


class InputText(msgspec.Struct, tag_field="type", tag="input_text"):
    """Words of the user."""

    text: str


class InputImage(msgspec.Struct, tag_field="type", tag="input_image"):
    """A picture in its place among the words."""

    image_url: str
    detail: Detail | None = "auto"


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    """Words that the assistant said before."""

    text: str


class OutputRefusal(msgspec.Struct, tag_field="type", tag="refusal"):
    """Words with which it declined."""

    refusal: str


ItemPart = InputText | InputImage | OutputText | OutputRefusal


class MessageItem(msgspec.Struct, tag_field="type", tag="message"):
    """What somebody said."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ItemPart]


class FunctionCallItem(msgspec.Struct, tag_field="type", tag="function_call"):
    """A tool that the assistant called."""

    call_id: Annotated[str, Meta(min_length=1, max_length=256)]
    name: str
    arguments: str


class FunctionOutputItem(msgspec.Struct, tag_field="type", tag="function_call_output"):
    """What a tool answered."""

    call_id: Annotated[str, Meta(min_length=1, max_length=256)]
    output: str | list[ItemPart]


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning"):
    """What the assistant thought before, which is not read again."""


Item = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem


class TextSettings(msgspec.Struct):
    """The form of the answer's text."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(DrawingFields, kw_only=True):
    """A conversation as a list of items, or one question."""

    input: str | Annotated[list[Item], Meta(min_length=1, max_length=MOST_ITEMS)]
    instructions: str | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0)] | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    truncation: Literal["disabled"] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    grounding: GroundingOptions | None = None
    chat_template_kwargs: TemplateKwargs | None = None
