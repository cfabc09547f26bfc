"""Objects are closed where that leaves each schema what it was, and answers end."""

import asyncio
import json

import pytest

from modelwright.server.closed_schema import closed_schema
from tests.server.models import nano
from tests.server.serving import CHAT, running

POINT = {"type": "object", "properties": {"x": {"type": "integer"}}}
CLOSED = POINT | {"additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (POINT, CLOSED),
        ({"type": "array", "items": POINT}, {"type": "array", "items": CLOSED}),
        ({"$defs": {"p": POINT}, "$ref": "#/$defs/p"}, {"$defs": {"p": CLOSED}, "$ref": "#/$defs/p"}),
        ({"anyOf": [POINT, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"allOf": [POINT]}, {"allOf": [CLOSED]}),
        ({"properties": {"p": POINT}}, {"properties": {"p": CLOSED}, "additionalProperties": False}),
        ({"enum": [POINT]}, {"enum": [POINT]}),
        ({"type": "object"}, {"type": "object"}),
        (True, True),
    ],
)
def test_objects_that_name_their_properties_are_closed(schema, expected):
    assert closed_schema(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        POINT | {"additionalProperties": True},
        POINT | {"additionalProperties": {"type": "string"}},
        POINT | {"patternProperties": {"^a": {}}},
        {"allOf": [POINT, {"properties": {"y": {}}}]},
        POINT | {"anyOf": [{"required": ["x"]}, {"required": ["y"]}]},
        POINT | {"minProperties": 2},
        POINT | {"required": ["y"]},
        {"$defs": {"p": POINT}, "properties": {"y": {}}, "$ref": "#/$defs/p"},
    ],
)
def test_what_says_otherwise_or_is_said_in_several_places_stays(schema):
    assert closed_schema(schema) == schema


@pytest.mark.slow
def test_a_small_model_comes_to_an_end():
    """Asked as libraries ask, which do not close their objects: the form and the call are whole."""
    shape = {
        "properties": {"colour": {"enum": ["red", "blue"]}, "sides": {"type": "integer", "minimum": 0, "maximum": 9}}
    }
    schema = {"type": "object", "required": ["colour", "sides"], **shape}
    tool = {"type": "function", "function": {"name": "draw", "parameters": schema}}
    said = {"model": "tiny", "temperature": 0, "max_tokens": 400, "messages": [{"role": "user", "content": "Draw."}]}
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}

    async def main():
        async with running(nano()) as server:
            asked = [form, {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}]
            return [(await server.client.post(CHAT, said | each)).json()["choices"][0] for each in asked]

    formed, called = asyncio.run(main())
    assert json.loads(formed["message"]["content"]).keys() == {"colour", "sides"}
    [call] = called["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]).keys() == {"colour", "sides"}
    assert formed["finish_reason"] == "stop" and called["finish_reason"] == "tool_calls"
