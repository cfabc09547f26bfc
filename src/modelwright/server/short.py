"""Which requests are made ready in less than a millisecond, as far as they say it themselves."""

from collections.abc import Callable

from modelwright.server.wire.chat import ChatRequest
from modelwright.server.wire.completions import CompletionRequest
from modelwright.server.wire.messages import AssistantMessage, Message, ToolMessage

CHARACTERS = 2048
"""Of all messages, or of a prompt, together."""
MESSAGES = 32
CONSTRAINING = ("response_format", "structured_outputs", "tools", "tool_choice", "parallel_tool_calls")
"""Fields that make a grammar, or speak of one."""
_AT_LENGTH = (*CONSTRAINING, "grounding", "bad_words", "logit_bias", "chat_template_kwargs")
"""Those, and others that may hold much."""


def is_short(request: ChatRequest | CompletionRequest, plain: Callable[[str], bool]) -> bool:
    """Whether it is a little text and nothing else: no pictures, no grammar, no tools, no lists of words.

    Args:
        plain: whether a text holds no special token; the first one that does takes long.
    """
    if any(getattr(request, name, None) is not None for name in _AT_LENGTH):
        return False
    if isinstance(request, CompletionRequest):
        texts = [request.prompt]
    else:
        texts = list(map(_words, request.messages)) if len(request.messages) <= MESSAGES else [None]
    words = [text for text in texts if isinstance(text, str)]
    return len(words) == len(texts) and sum(map(len, words)) <= CHARACTERS and all(map(plain, words))


def _words(message: Message) -> str | None:
    """A message that is nothing but text."""
    if isinstance(message, ToolMessage) or not isinstance(message.content, str):
        return None
    if isinstance(message, AssistantMessage) and (message.tool_calls or message.reasoning_content or message.reasoning):
        return None
    return message.content
