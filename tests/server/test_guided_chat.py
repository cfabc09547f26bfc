"""Forms and tools over HTTP: a whole reply, the same in a stream, and what is refused."""

import asyncio
import json

import pytest

from tests.server.guided import CITY, TOOLS
from tests.server.models import llama
from tests.server.schemas import holds
from tests.server.serving import CHAT, running

SCHEMAS = {"get_weather": CITY, "now": {"type": "object", "additionalProperties": False}}
FORM = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}


def post(*bodies):
    """Each body's reply."""

    async def main():
        async with running(llama()) as server:
            return [await server.client.post(CHAT, ask(**body)) for body in bodies]

    return asyncio.run(main())


def ask(**fields):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Well?"}], "max_tokens": 400, "seed": 5}
    return asked | fields


def told(frames):
    """The content and the calls of a stream, joined."""
    text, calls, reason = "", {}, None
    for frame in frames[:-1]:
        for choice in frame["choices"]:
            delta, reason = choice["delta"], choice["finish_reason"] or reason
            text += delta.get("content") or ""
            for call in delta.get("tool_calls", ()):
                name, arguments = calls.setdefault(call["index"], ["", ""])
                name += call["function"].get("name") or ""
                calls[call["index"]] = [name, arguments + (call["function"].get("arguments") or "")]
    return text, [tuple(call) for _, call in sorted(calls.items())], reason


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_row_24_calls_are_whole_and_the_same_in_a_stream(choice):
    body = {"tools": TOOLS[:2], "tool_choice": choice, "parallel_tool_calls": False}
    whole, streamed = post(body, body | {"stream": True})
    assert whole.status == streamed.status == 200, whole.body
    [said] = whole.json()["choices"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in said["message"]["tool_calls"]]
    assert told(streamed.frames()) == ("", calls, said["finish_reason"])
    assert said["finish_reason"] == "tool_calls" and not said["message"]["content"] and len(calls) == 1
    for name, arguments in calls:
        assert holds(SCHEMAS[name], json.loads(arguments))
        assert choice == "required" or name == "get_weather"


def test_row_23_a_form_is_whole_whatever_stops_are_asked_for():
    [said] = post({"response_format": FORM, "stop": ["}", '"']})
    [choice] = said.json()["choices"]
    assert choice["finish_reason"] == "stop" and holds(CITY, json.loads(choice["message"]["content"]))


def test_a_schema_that_cannot_be_held_is_told_by_its_field():
    odd = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
    refused = post(
        {"tools": [*TOOLS, odd]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"uniqueItems": True}}}},
        {"structured_outputs": {"json": {"enum": [f"v{number}" for number in range(100_000)]}}},
    )
    assert [(reply.status, reply.error["code"], reply.error["param"]) for reply in refused] == [
        (400, "invalid_schema", "tools[3].function.parameters"),
        (400, "invalid_schema", "response_format.json_schema.schema"),
        (400, "schema_too_complex", "structured_outputs.json"),
    ]
