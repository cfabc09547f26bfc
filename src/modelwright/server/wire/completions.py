"""``/v1/completions``: the request, the reply, and the frames of a stream, which have the same form."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from modelwright.server.wire.sampling import SamplingFields
from modelwright.server.wire.usage import Timings, Usage

MOST_PROMPTS = 64
LONGEST_PROMPT = 2**20
Words = Annotated[str, Meta(max_length=LONGEST_PROMPT)]
Tokens = list[int]


class CompletionRequest(SamplingFields, kw_only=True):
    """Text or token ids to be continued, up to 64 of them."""

    prompt: Words | list[Any]
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0)] | None = None
    suffix: str | None = None


class CompletionLogprobs(msgspec.Struct):
    """The older form: columns, by token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None = None
    prompt_logprobs: list[dict[str, Any] | None] | UnsetType = UNSET


class CompletionReply(msgspec.Struct, kw_only=True):
    """All continuations, or a frame of one."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    timings: Timings | UnsetType = UNSET
    progress: dict[str, Any] | UnsetType = UNSET
