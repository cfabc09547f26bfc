"""Items of a Responses request to the messages of a chat request, which is what is then served."""

from collections.abc import Sequence
from typing import Any

from modelwright.server.json_body import as_struct
from modelwright.server.wire.chat import ChatRequest
from modelwright.server.wire.errors import ApiError
from modelwright.server.wire.responses import (
    FunctionCallItem,
    FunctionOutputItem,
    InputImage,
    InputText,
    Item,
    ItemPart,
    MessageItem,
    OutputRefusal,
    OutputText,
    ResponsesRequest,
)
from modelwright.server.wire.sampling import DrawingFields

LOGPROBS = "message.output_text.logprobs"
"""What `include` names to be told of log-probabilities."""
NEVER_INCLUDED = (
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
"""What `include` may name besides: parts of items that no answer here has. Clients ask for some of them in any case."""
_SAME = (*DrawingFields.__struct_fields__, "parallel_tool_calls", "chat_template_kwargs")


def chat_request(
    request: ResponsesRequest, before: Sequence[dict[str, Any]]
) -> tuple[ChatRequest, list[dict[str, Any]]]:
    """The chat request of a Responses request, and its messages without the instructions.

    Args:
        before: the messages of the conversation that it goes on with.

    Raises:
        ApiError: something in it cannot be served.
    """
    include = request.include or []
    unknown = [name for name in include if name not in (LOGPROBS, *NEVER_INCLUDED)]
    if unknown:
        raise ApiError(
            400, "unsupported_parameter", f"include may name {LOGPROBS}, got {unknown[0][:80]!r}", param="include"
        )
    messages = [*before, *messages_of(request.input)]
    values = {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    instructions = [{"role": "system", "content": request.instructions}] if request.instructions else []
    values["messages"] = _one_system([*instructions, *messages])
    if request.max_output_tokens is not None:
        values["max_completion_tokens"] = request.max_output_tokens
    if request.tools is not None:
        values["tools"] = [_tool(number, tool) for number, tool in enumerate(request.tools)]
    if request.tool_choice is not None:
        values["tool_choice"] = _choice(request.tool_choice)
    if request.text is not None and request.text.format is not None:
        values["response_format"] = _format(request.text.format)
    if request.top_logprobs is not None or LOGPROBS in include:
        values |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    chat = as_struct(values, ChatRequest)
    chat.grounding = request.grounding
    return chat, messages


def with_types(body: dict[str, Any]) -> dict[str, Any]:
    """A body whose every item names its type: of a message OpenAI's clients leave it out."""
    items = body.get("input")
    if not isinstance(items, list):
        return body
    return body | {"input": [_with_type(item) for item in items]}


def _with_type(item: Any) -> Any:
    untyped = isinstance(item, dict) and "role" in item and item.get("type") is None
    return item | {"type": "message"} if untyped else item


def messages_of(given: str | Sequence[Item]) -> list[dict[str, Any]]:
    """Items as messages: calls that follow each other are one message's."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    for item in given:
        match item:
            case MessageItem(role, content):
                messages.append({"role": role, "content": _content(content)})
            case FunctionCallItem(call_id, name, arguments):
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
                messages[-1].setdefault("tool_calls", []).append(call)
            case FunctionOutputItem(call_id, output):
                messages.append({"role": "tool", "tool_call_id": call_id, "content": _content(output)})
    if not messages:
        raise ApiError(400, "invalid_value", "input holds no message", param="input")
    return messages


def _one_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Instructions and a first system message become one, since many models read only one."""
    if len(messages) > 1 and messages[0]["role"] == "system" and messages[1]["role"] in ("system", "developer"):
        parts = [*_parts(messages[0]["content"]), *_parts(messages[1]["content"])]
        return [{"role": "system", "content": parts}, *messages[2:]]
    return messages


def _parts(content: str | list[Any]) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _content(content: str | list[ItemPart]) -> Any:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: ItemPart) -> dict[str, Any]:
    match part:
        case InputImage(url, detail):
            return {"type": "image_url", "image_url": {"url": url, "detail": detail}}
        case InputText(text) | OutputText(text) | OutputRefusal(text):
            return {"type": "text", "text": text}


def _tool(number: int, tool: Any) -> Any:
    """A tool's definition, which lies flat here and in a field of its own in chat."""
    if not isinstance(tool, dict) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, dict) else tool
        said = f"tools[{number}] must be of type function: no tool is built in here, got {kind!r:.80}"
        raise ApiError(400, "unsupported_parameter", said, param=f"tools[{number}]")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _choice(choice: Any) -> Any:
    """What may be called, which lies flat here and in a field of its own in chat."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function" and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    if choice.get("type") == "allowed_tools":
        nested = choice.get("allowed_tools")
        allowed = nested if isinstance(nested, dict) else {name: choice.get(name) for name in ("mode", "tools")}
        tools = allowed.get("tools")
        if isinstance(tools, list):
            allowed = {**allowed, "tools": [_choice(tool) for tool in tools]}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    return choice


def _format(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}
    return given
