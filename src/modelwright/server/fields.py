"""The rule of every field: what a request asks is honoured, refused, or ignored and reported."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from modelwright.server.inner_fields import unknown_inside
from modelwright.server.response_input import NEVER_INCLUDED
from modelwright.server.wire.chat import ChatRequest
from modelwright.server.wire.completions import CompletionRequest
from modelwright.server.wire.errors import ApiError
from modelwright.server.wire.responses import ResponsesRequest
from modelwright.server.wire.tokens import TokenizeRequest

MOST_TOLD = 16
"""Names in ``x-modelwright-ignored`` at most."""


@dataclass(frozen=True)
class Refused:
    """A field that would change the answer and cannot be honoured here.

    Attributes:
        instead: what to use, as the end of a sentence.
        idle: the values that ask for nothing, besides null.
    """

    instead: str
    idle: tuple[Any, ...] = ()


_SCHEMA = "use response_format with type json_schema, or structured_outputs.json"
_TEMPLATE = Refused("templates are set when the server starts (--chat-template)")
_ADAPTER = Refused("an adapter is folded in when the server starts (--merge-adapter), and is what model names then")
_COMMON_REFUSED: Mapping[str, Refused] = {
    "best_of": Refused("draw n answers and choose among them", (1,)),
    "use_beam_search": Refused("beams are not served; draw n answers instead", (False,)),
    "prompt_embeds": Refused("send the prompt as text or token ids"),
    "guided_json": Refused(_SCHEMA),
    "guided_regex": Refused("use structured_outputs.regex"),
    "guided_choice": Refused("use structured_outputs.choice"),
    "guided_grammar": Refused("use structured_outputs.grammar"),
    "guided_decoding_backend": Refused("structured_outputs needs no backend named"),
    "guided_whitespace_pattern": Refused("use structured_outputs.grammar"),
    "grammar": Refused("use structured_outputs.grammar"),
    "guided_decoding": Refused("use structured_outputs"),
    "allowed_token_ids": Refused("use structured_outputs, or logit_bias"),
    "logits_processors": Refused("use structured_outputs, or logit_bias"),
    "custom_logit_processor": Refused("use structured_outputs, or logit_bias"),
    "regex": Refused("use structured_outputs.regex"),
    "ebnf": Refused("use structured_outputs.grammar"),
    "structural_tag": Refused("use structured_outputs.structural_tag"),
    "truncate_prompt_tokens": Refused("a request that is too long is refused"),
    "json_schema": Refused(_SCHEMA),
    "format": Refused(_SCHEMA),
    "options": Refused("give the sampling fields themselves: temperature, top_p, max_tokens, ..."),
    "num_ctx": Refused("the context is set when the server starts (--max-context) and never cut"),
    "think": Refused("use chat_template_kwargs where the model's template reads such a variable", (False,)),
    "keep_alive": Refused("the model stays loaded as long as the server runs"),
    "lora": _ADAPTER,
    "lora_path": _ADAPTER,
    "lora_request": _ADAPTER,
    "adapter_id": _ADAPTER,
}
_OF_RESPONSES: Mapping[str, Refused] = {
    "input": Refused("use messages"),
    "instructions": Refused("use a message of the system"),
    "include": Refused("use logprobs and top_logprobs", ([],)),
    "text": Refused("use response_format"),
    "previous_response_id": Refused("send the conversation, or use /v1/responses"),
    "truncation": Refused("a request that is too long is refused", ("disabled",)),
    "max_output_tokens": Refused("use max_completion_tokens"),
}
"""Fields of `/v1/responses`, and what says the same in chat."""
REFUSED: Mapping[type, Mapping[str, Refused]] = {
    ChatRequest: _COMMON_REFUSED
    | _OF_RESPONSES
    | {
        "prompt": Refused("use messages, or /v1/completions"),
        "suffix": Refused("use /v1/completions"),
        "store": Refused("answers are not kept; keep them on your side", (False,)),
        "audio": Refused("no model here speaks"),
        "web_search_options": Refused("no model here searches the web; offer a tool that does"),
        "functions": Refused("use tools", ([],)),
        "function_call": Refused("use tool_choice", ("none", "auto")),
        "chat_template": _TEMPLATE,
        "echo": Refused("use /v1/completions with echo", (False,)),
        "modalities": Refused("answers are text", (["text"],)),
    },
    CompletionRequest: _COMMON_REFUSED
    | {name: Refused("use /v1/responses", rule.idle) for name, rule in _OF_RESPONSES.items()}
    | {
        "max_completion_tokens": Refused("use max_tokens"),
        "max_output_tokens": Refused("use max_tokens"),
        "top_logprobs": Refused("use logprobs, which is a number here", (0,)),
        "tools": Refused("use /v1/chat/completions", ([],)),
        "tool_choice": Refused("use /v1/chat/completions", ("none", "auto")),
        "grounding": Refused("use /v1/chat/completions"),
        "messages": Refused("use /v1/chat/completions"),
        "store": Refused("answers are not kept; keep them on your side", (False,)),
    },
    ResponsesRequest: _COMMON_REFUSED
    | {
        "background": Refused("an answer is given to whoever waits for it", (False,)),
        "conversation": Refused("send the conversation, or previous_response_id"),
        "prompt": Refused("templates of prompts are not kept here; send the text"),
        "max_tool_calls": Refused("no tool is built in here"),
        "messages": Refused("use input"),
        "n": Refused("use /v1/chat/completions", (1,)),
        "logprobs": Refused("use top_logprobs", (False,)),
        "prompt_logprobs": Refused("use /v1/chat/completions"),
        "add_generation_prompt": Refused("use /v1/chat/completions", (True,)),
        "continue_final_message": Refused("use /v1/chat/completions", (False,)),
        "echo": Refused("use /v1/completions", (False,)),
        "suffix": Refused("use /v1/completions"),
        "max_completion_tokens": Refused("use max_output_tokens"),
        "max_tokens": Refused("use max_output_tokens"),
        "response_format": Refused("use text.format"),
    },
    TokenizeRequest: {"chat_template": _TEMPLATE},
}
IGNORED = frozenset(
    [
        "reasoning_effort",
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prediction",
        "verbosity",
        "request_id",
        "return_tokens_as_token_ids",
        "parallel_tool_calls",
        "reasoning",
    ]
)
"""Fields without effect on the answer, which requests bring because clients send them."""
_NOTHING_SAID = frozenset({"id", "status", "annotations", "logprobs", "refusal", "audio", "function_call", "summary"})
"""What clients send back of answers that they got, inside messages and items; it says nothing."""
_IDLE_IGNORED: Mapping[str, tuple[Any, ...]] = {"service_tier": ("auto", "default")}


def check_fields(body: Mapping[str, Any], kind: type[msgspec.Struct], strict: bool) -> tuple[str, ...]:
    """The fields of a request that are ignored, in their order.

    Args:
        kind: the Struct that the request becomes; its fields are honoured.
        strict: unknown fields are refused.

    Raises:
        ApiError: a field that is refused says more than its default, an unknown one where `strict`, or options of a
            stream without one.
    """
    honoured, ignored = set(kind.__struct_fields__), []
    if "stream_options" in honoured:
        _check_stream_options(body)
    for name, value in body.items():
        if name in honoured or value is None:
            continue
        rule = REFUSED.get(kind, {}).get(name)
        if rule is not None:
            if value not in rule.idle or type(value) not in {type(each) for each in rule.idle}:
                raise _unsupported(name, rule.instead)
        elif name in _IDLE_IGNORED:
            if value not in _IDLE_IGNORED[name]:
                raise _unsupported(name, f"only {' and '.join(_IDLE_IGNORED[name])} mean something here")
            ignored.append(name)
        elif strict and name not in IGNORED:
            near = difflib.get_close_matches(name, honoured, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ApiError(400, "unknown_field", f"there is no field {name[:80]!r} here{hint}", param=name[:80])
        else:
            ignored.append(name)
    inside = [path for path in unknown_inside(body, kind) if _last(path) not in _NOTHING_SAID]
    if strict and inside:
        raise ApiError(400, "unknown_field", f"there is no field {inside[0][:80]!r} here", param=inside[0][:80])
    return (*ignored, *inside, *_never_included(body, kind))


def _check_stream_options(body: Mapping[str, Any]) -> None:
    options = body.get("stream_options")
    asked = [name for name, value in options.items() if value is True] if isinstance(options, Mapping) else []
    if asked and not body.get("stream"):
        said = f"stream_options.{asked[0][:80]} is told in streams alone: set stream to true, or leave it out"
        raise ApiError(400, "invalid_value", said, param="stream_options")


def _never_included(body: Mapping[str, Any], kind: type) -> list[str]:
    """What a Responses request asks to be told and no answer has."""
    asked = body.get("include") if kind is ResponsesRequest else None
    return [f"include.{name}" for name in asked if name in NEVER_INCLUDED] if isinstance(asked, list) else []


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def ignored_header(ignored: tuple[str, ...]) -> dict[str, str]:
    """``x-modelwright-ignored``, for a reply; what cannot stand in a header is written in escapes."""
    if not ignored:
        return {}
    names = [name[:80].encode("ascii", "backslashreplace").decode() for name in ignored[:MOST_TOLD]]
    clean = ["".join(c if c.isprintable() and c not in ",;" else "?" for c in name) for name in names]
    return {"x-modelwright-ignored": ", ".join(clean)}


def _unsupported(name: str, instead: str) -> ApiError:
    return ApiError(400, "unsupported_parameter", f"{name} is not supported: {instead}", param=name)
