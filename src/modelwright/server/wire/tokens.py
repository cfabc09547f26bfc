"""``/tokenize`` and ``/detokenize``, in vLLM's form."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from modelwright.server.wire.chat import MOST_MESSAGES, TemplateKwargs
from modelwright.server.wire.messages import Message

MOST_BYTES = 2**20
MOST_TOKENS = 2**18


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A text or a conversation whose tokens are asked for."""

    model: str = ""
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MOST_MESSAGES)] | None = None
    tools: list[Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeReply(msgspec.Struct):
    """The tokens, a picture's as so many of the placeholder's id."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Token ids whose text is asked for."""

    model: str = ""
    tokens: Annotated[list[int], Meta(max_length=MOST_TOKENS)]
