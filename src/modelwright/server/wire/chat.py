"""``/v1/chat/completions``: the request, the reply, and the frames of a stream."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from modelwright.server.wire.grounding import GroundingOptions
from modelwright.server.wire.messages import Message
from modelwright.server.wire.sampling import SamplingFields
from modelwright.server.wire.usage import Timings, Usage

MOST_MESSAGES = 4096
TemplateKwargs = dict[str, str | int | float | bool | None]


class ChatRequest(SamplingFields, kw_only=True):
    """A conversation that the assistant is to continue."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0)] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict | None = None
    parallel_tool_calls: bool | None = None
    grounding: GroundingOptions | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class TopLogprob(msgspec.Struct):
    """One of the likeliest tokens at a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    """What the model thought of the token that stands there."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(msgspec.Struct):
    """Of each token of the answer."""

    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(msgspec.Struct):
    """In a stream the name comes once and the arguments in pieces."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CalledTool(msgspec.Struct):
    """A call of a tool; `index` stands in streams alone."""

    function: CalledFunction
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    index: int | UnsetType = UNSET


class Box(msgspec.Struct):
    """A thing that the answer points at."""

    label: str
    picture: int
    box: tuple[float, float, float, float]
    raw: tuple[int, int, int, int]
    span: tuple[int, int]


class SkippedBox(msgspec.Struct):
    """What looks like a box and is none, and why."""

    text: str
    reason: str


class ReplyMessage(msgspec.Struct):
    """What the assistant said."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[CalledTool] | UnsetType = UNSET
    groundings: list[Box] | UnsetType = UNSET
    groundings_skipped: list[SkippedBox] | UnsetType = UNSET


class Choice(msgspec.Struct):
    """One of the `n` answers."""

    index: int
    message: ReplyMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: str
    stop_reason: str | int | None = None


class ChatReply(msgspec.Struct, kw_only=True):
    """The whole answer."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    prompt_logprobs: list[dict[str, Any] | None] | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET


class Delta(msgspec.Struct):
    """What a frame adds to an answer."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[CalledTool] | UnsetType = UNSET
    groundings: list[Box] | UnsetType = UNSET
    groundings_skipped: list[SkippedBox] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """The part of a frame that belongs to one of the `n` answers."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    """One frame of a stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_logprobs: list[dict[str, Any] | None] | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET
    progress: dict[str, Any] | UnsetType = UNSET
