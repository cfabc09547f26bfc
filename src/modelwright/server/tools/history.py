"""Earlier calls and what came of them, in the messages as the model's template reads them."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from modelwright.configs.field_types import cut
from modelwright.engine.params import is_text
from modelwright.processing.plain_words import plainly
from modelwright.server.json_body import DEEPEST, is_too_deep
from modelwright.server.tools.dialects import Dialect
from modelwright.server.tools.request import NAME, Tool
from modelwright.server.wire.errors import ApiError

_ABOUT = """You may call tools. These are their descriptions, one a line:
<tools>
{tools}
</tools>
To call one, write an object with its name and its arguments, and nothing after it:
{example}
What came of it is then told between <tool_response> and </tool_response>."""
_EXAMPLES = {
    "json": '<tool_call>\n{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}\n</tool_call>',
    "llama3": '{"name": "NAME", "parameters": {"ARGUMENT": "VALUE"}}',
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n"
    '{"ARGUMENT": "VALUE"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
}


def instruction_for(dialect: Dialect, tools: Sequence[Tool], plain: Callable[[str], str] = str) -> str | None:
    """What the system turn says of tools, in words made `plain`; None where the template prints them or none are."""
    if dialect.prints_tools or not tools:
        return None
    lines = "\n".join(plain(json.dumps(tool.given["function"], ensure_ascii=False)) for tool in tools)
    return _ABOUT.format(tools=lines, example=_EXAMPLES[dialect.name])


def with_calls(
    messages: Sequence[Mapping[str, Any]], dialect: Dialect, plain: Callable[[str], str] = str
) -> list[dict[str, Any]]:
    """Messages in OpenAI's form with their ``tool_calls`` and answers of tools as the model reads them.

    Answers of one turn's calls are put in the order of the calls. What a call says is made `plain`, once it is read:
    JSON may write any character in other ones.

    Raises:
        ApiError: 400 for a call that is none, and for an answer to a call that is not there or was answered before.
    """
    turns = _answered([_with_calls(number, message, plain) for number, message in enumerate(messages)])
    if not dialect.prints_calls:
        return [_as_text(turn, dialect) for turn in turns]
    if dialect.one_call_a_turn:
        turns = _one_by_one(turns)
    return [_for_template(turn, dialect) for turn in turns]


def with_instruction(messages: Sequence[Mapping[str, Any]], instruction: str | None) -> list[dict[str, Any]]:
    """Messages that begin with a system message which ends with `instruction`."""
    if instruction is None:
        return [dict(message) for message in messages]
    if messages and messages[0].get("role") in ("system", "developer"):
        content = messages[0].get("content") or ""
        if isinstance(content, str):
            joined: Any = f"{content}\n\n{instruction}" if content else instruction
        else:
            joined = [*content, {"type": "text", "text": instruction}]
        return [{**messages[0], "content": joined}, *map(dict, messages[1:])]
    return [{"role": "system", "content": instruction}, *map(dict, messages)]


def _with_calls(number: int, message: Mapping[str, Any], plain: Callable[[str], str]) -> dict[str, Any]:
    """A message whose calls are checked, their arguments objects."""
    calls, where = message.get("tool_calls"), f"messages[{number}].tool_calls"
    kept = {name: value for name, value in message.items() if name != "tool_calls"}
    if calls is None or calls == []:
        return kept
    if message.get("role") != "assistant":
        raise _wrong(where, f"{where} may stand in messages of the assistant, not of {cut(message.get('role'))}")
    if not isinstance(calls, list):
        raise _wrong(where, f"{where} must be a list, got {cut(calls)}")
    return {**kept, "tool_calls": [_read_call(call, f"{where}[{place}]", plain) for place, call in enumerate(calls)]}


def _read_call(call: Any, where: str, plain: Callable[[str], str]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or call.get("type", "function") != "function":
        raise _wrong(where, f'{where} must be an object of type "function" with id and function, got {cut(call)}')
    name, id_ = function.get("name"), call.get("id")
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise _wrong(f"{where}.function.name", f"{where}.function.name must be a tool's name, got {cut(name)}")
    if not isinstance(id_, str) or not 0 < len(id_) <= 256:
        raise _wrong(f"{where}.id", f"{where}.id must be a text of 1 to 256 characters, got {cut(id_)}")
    given, place = function.get("arguments"), f"{where}.function.arguments"
    try:
        arguments = json.loads(given or "{}") if isinstance(given, str | None) else given
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, Mapping) or is_too_deep(arguments):
        raise _wrong(place, f"{place} must be an object written as JSON, {DEEPEST} deep at most, got {cut(given)}")
    if not is_text(json.dumps(arguments, ensure_ascii=False)):
        raise _wrong(place, f"{place} must be text in UTF-8, and half of a surrogate pair stands alone in it")
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": plainly(arguments, plain)}}


def _answered(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages in which the answers to a turn's calls follow it in the order of the calls."""
    turns: list[dict[str, Any]] = []
    open_: dict[str, int] = {}  # ids of the last turn's calls that wait for an answer, and their order
    answers: list[tuple[int, dict[str, Any]]] = []

    def close() -> None:
        turns.extend(answer for _, answer in sorted(answers, key=lambda each: each[0]))
        answers.clear()

    for number, message in enumerate(messages):
        if message.get("role") == "tool":
            id_, where = message.get("tool_call_id"), f"messages[{number}].tool_call_id"
            if not isinstance(id_, str) or id_ not in open_:
                known = f"one of {cut(', '.join(open_))}" if open_ else "that of a call, and none waits for an answer"
                raise _wrong(where, f"{where} must be {known}, got {cut(id_)}")
            answers.append((open_.pop(id_), message))
            continue
        close()
        turns.append(message)
        open_ = {call["id"]: place for place, call in enumerate(message.get("tool_calls", ()))}
        if len(open_) < len(message.get("tool_calls", ())):
            where = f"messages[{number}].tool_calls"
            raise _wrong(where, f"{where} must have ids of their own, and one stands twice")
    close()
    return turns


def _one_by_one(turns: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns with several calls as several turns, each with its answer."""
    found: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []  # further calls of the turn
    for turn in turns:
        if turn.get("role") == "tool":
            while waiting and not _answers(turn, found[-1]):
                found.append(waiting.pop(0))
            found.append(turn)
            continue
        found += waiting
        first, *rest = turn.get("tool_calls") or [None]
        found.append(turn if first is None else {**turn, "tool_calls": [first]})
        waiting = [{**turn, "content": None, "tool_calls": [call]} for call in rest]
    return found + waiting


def _answers(answer: Mapping[str, Any], turn: Mapping[str, Any]) -> bool:
    return any(call["id"] == answer["tool_call_id"] for call in turn.get("tool_calls", ()))


def _for_template(turn: dict[str, Any], dialect: Dialect) -> dict[str, Any]:
    if "tool_calls" not in turn:
        return turn
    calls = turn["tool_calls"]
    if dialect.arguments_are_text:
        calls = [{**call, "function": {**call["function"], "arguments": _json(call)}} for call in calls]
    return {**turn, "content": turn.get("content"), "tool_calls": calls}


def _as_text(turn: dict[str, Any], dialect: Dialect) -> dict[str, Any]:
    """A turn for a template that knows no calls: they are written as the instruction says, answers by the user."""
    if turn.get("role") == "tool":
        return {"role": "user", "content": _wrapped(turn.get("content"))}
    if "tool_calls" not in turn:
        return turn
    kept = {name: value for name, value in turn.items() if name != "tool_calls"}
    said, calls = turn.get("content") or "", "\n".join(_written(call, dialect) for call in turn["tool_calls"])
    if isinstance(said, str):
        return {**kept, "content": f"{said}\n{calls}" if said else calls}
    return {**kept, "content": [*said, {"type": "text", "text": calls}]}


def _wrapped(content: Any) -> Any:
    if isinstance(content, list):
        ends = ({"type": "text", "text": f"<{slash}tool_response>"} for slash in ("", "/"))
        return [next(ends), *content, next(ends)]
    return f"<tool_response>\n{content or ''}\n</tool_response>"


def _written(call: Mapping[str, Any], dialect: Dialect) -> str:
    name, arguments = call["function"]["name"], _json(call)
    example = _EXAMPLES[dialect.name].replace("NAME", name)
    return re.sub(r'\{"ARGUMENT": "VALUE"\}', lambda _: arguments, example)


def _json(call: Mapping[str, Any]) -> str:
    return json.dumps(call["function"]["arguments"], ensure_ascii=False)


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", message, param=param)
