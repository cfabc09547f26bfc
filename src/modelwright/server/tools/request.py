"""``tools``, ``tool_choice`` and ``parallel_tool_calls`` of a request, read and checked."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelwright.configs.field_types import cut
from modelwright.engine.schema import enforced_schema
from modelwright.errors import GuideError
from modelwright.server.closed_schema import closed_schema
from modelwright.server.wire.errors import ApiError

MOST_TOOLS = 128
MOST_SCHEMAS = 256 * 1024
"""Bytes of the parameters of all tools together, written as JSON."""
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tool:
    """A function that may be called: its name, the schema of its arguments as JSON, and all that was said of it."""

    name: str
    schema: str
    given: Mapping[str, Any]


@dataclass(frozen=True)
class ToolRequest:
    """What a request says of tools.

    Attributes:
        shown: the tools that the model is told of.
        callable: those that it may call; fewer where one is named.
        must: the answer is a call and nothing else.
        several: it may be several calls.
    """

    shown: tuple[Tool, ...] = ()
    callable: tuple[Tool, ...] = ()
    must: bool = False
    several: bool = True


def read_tools(tools: Any, choice: Any = None, parallel: Any = None) -> ToolRequest:
    """The three fields as they came, None for those that did not.

    Raises:
        ApiError: 400 with the place of what is wrong.
    """
    if parallel is not None and not isinstance(parallel, bool):
        raise _wrong("parallel_tool_calls", f"parallel_tool_calls must be true or false, got {cut(parallel)}")
    found = _read_list(tools)
    names = {tool.name: tool for tool in found}
    mode, allowed = _read_choice(choice, names)
    if mode == "none":
        return ToolRequest()
    callable_ = tuple(tool for tool in found if tool.name in allowed)
    return ToolRequest(found, callable_, mode != "auto", parallel is not False and mode != "named")


def _read_list(tools: Any) -> tuple[Tool, ...]:
    if tools is None:
        return ()
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise _wrong("tools", f"tools must be a list, got {cut(tools)}")
    if len(tools) > MOST_TOOLS:
        raise _wrong("tools", f"tools must be at most {MOST_TOOLS}, got {len(tools)}")
    found = [_read_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    for number, tool in enumerate(found):
        if any(tool.name == other.name for other in found[:number]):
            raise _wrong(f"tools[{number}].function.name", f"tools must have names of their own, got {tool.name} twice")
    size = sum(len(tool.schema) for tool in found)
    if size > MOST_SCHEMAS:
        raise ApiError(
            400,
            "schema_too_complex",
            f"the parameters of all tools together must be at most {MOST_SCHEMAS} bytes of JSON, got {size}",
            param="tools",
        )
    return tuple(found)


def _read_tool(tool: Any, where: str) -> Tool:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        raise _wrong(where, f'{where} must be an object whose type is "function", got {cut(tool)}')
    function = tool.get("function")
    where = f"{where}.function"
    if not isinstance(function, Mapping):
        raise _wrong(where, f"{where} must be an object with name, description and parameters, got {cut(function)}")
    name = function.get("name")
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise _wrong(f"{where}.name", f"{where}.name must be 1 to 64 of A-Z, a-z, 0-9, _ and -, got {cut(name)}")
    if not isinstance(function.get("description", ""), str | None):
        raise _wrong(f"{where}.description", f"{where}.description must be text, got {cut(function['description'])}")
    if not isinstance(function.get("strict", False), bool | None):
        raise _wrong(f"{where}.strict", f"{where}.strict must be true or false, got {cut(function['strict'])}")
    return Tool(name, _schema(function.get("parameters"), f"{where}.parameters"), tool)


def _schema(parameters: Any, where: str) -> str:
    """The schema of arguments, which are an object whatever else is said of them."""
    parameters = _NOTHING if parameters is None or parameters == {} else parameters
    if not isinstance(parameters, Mapping):
        raise _wrong(where, f"{where} must be a JSON schema, got {cut(parameters)}")
    kind = parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise ApiError(
            400, "invalid_schema", f"{where} must describe an object, and its type is {cut(kind)}", param=where
        )
    try:
        return json.dumps(closed_schema(enforced_schema({**parameters, "type": "object"})))
    except GuideError as error:
        code = "schema_too_complex" if error.too_complex else "invalid_schema"
        raise ApiError(400, code, f"{where}: {error}", param=where) from error
    except RecursionError as error:
        raise ApiError(400, "schema_too_complex", f"{where} must not be so deep", param=where) from error
    except (TypeError, ValueError) as error:
        raise ApiError(400, "invalid_schema", f"{where} must be JSON: {error}", param=where) from error


def _read_choice(choice: Any, names: Mapping[str, Tool]) -> tuple[str, set[str]]:
    """none, auto, required or named, and which tools may be called."""
    if choice is None:
        return ("auto" if names else "none"), set(names)
    if choice in ("none", "auto") and isinstance(choice, str):
        return (choice if names else "none"), set(names)
    if not names:
        raise _wrong("tool_choice", f"tool_choice must be none or auto where there are no tools, got {cut(choice)}")
    if choice == "required":
        return "required", set(names)
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "function":
        return "named", {_known(choice.get("function"), names, "tool_choice.function")}
    if kind == "allowed_tools":
        return _read_allowed(choice.get("allowed_tools"), names)
    raise _wrong(
        "tool_choice",
        'tool_choice must be none, auto, required, {"type": "function", "function": {"name": ...}} or '
        f'{{"type": "allowed_tools", ...}}, got {cut(choice)}',
    )


def _read_allowed(allowed: Any, names: Mapping[str, Tool]) -> tuple[str, set[str]]:
    where = "tool_choice.allowed_tools"
    mode = allowed.get("mode") if isinstance(allowed, Mapping) else None
    tools = allowed.get("tools") if isinstance(allowed, Mapping) else None
    if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
        raise _wrong(where, f"{where} must have mode (auto or required) and tools (a list), got {cut(allowed)}")
    found = set()
    for number, tool in enumerate(tools):
        here = f"{where}.tools[{number}]"
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise _wrong(here, f'{here} must be an object whose type is "function", got {cut(tool)}')
        found.add(_known(tool.get("function"), names, f"{here}.function"))
    return mode, found


def _known(function: Any, names: Mapping[str, Tool], where: str) -> str:
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or name not in names:
        raise _wrong(
            f"{where}.name", f"{where}.name must be one of the tools ({cut(', '.join(names))}), got {cut(name)}"
        )
    return name


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", message, param=param)
