"""`/openapi.json` says what the server does: what a schema allows is answered, and what it does not is refused."""

import asyncio
from functools import cache

import jsonschema
import pytest

from modelwright.server.response_input import LOGPROBS
from tests.server.models import llama
from tests.server.serving import CHAT, COMPLETIONS, RESPONSES, running

FUNCTION = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {}}}}
TOOL, FLAT_TOOL = {"type": "function", "function": FUNCTION}, {"type": "function", **FUNCTION}
TAGS = {"structures": [{"begin": "<a>", "schema": {"type": "integer"}, "end": "</a>"}], "triggers": ["<a"]}
FORM = {"name": "whole", "schema": {"type": "integer"}}
NUMBERS = [-3, -2, -1, 0, 1, 2, 3, 7, 8, 9, 20, 21, 300, 2**31, 2**63 - 1, 2**63, 2**70]
NUMBERS += [-0.5, 0.5, 1.5, 2.5, 1e30, 1e31]
TEXTS = ["", " ", "a", "a" * 256, "a" * 257, "none", "auto", "required", "disabled", "high"]
LISTS = [[], [0], [1, 2], [299], [300], [-1], [2**40], [True], ["a"], [""], [" "], ["a"] * 16, ["a"] * 17]
LISTS += [["a"] * 64, ["a"] * 65, [[1]], [[]], [[1], "a"], [["a"]], [None], [1.5], [LOGPROBS], [{"text": "a"}]]
LISTS += [[{"role": "user", "content": "a"}], [{"role": "user"}], [{"role": "cook", "content": "a"}]]
LISTS += [[{"type": "message", "role": "user", "content": "a"}], [{"type": "call"}]]
LISTS += [[TOOL], [FLAT_TOOL], [TOOL | {"type": "web_search"}], [{"type": "function", "function": {"name": "a b"}}]]
OBJECTS = [{}, {"a": "b"}, {"a": 1}, {"5": 1}, {"5": 1e31}, {"5": None}, {"-5": 1}, {"type": "text"}]
OBJECTS += [{"type": "json_object"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": FORM}]
OBJECTS += [{"type": "json_schema", "json_schema": {"name": "a"}}, {"type": "json_schema", **FORM}, {"type": "xml"}]
OBJECTS += [{"type": "structural_tag"}, {"type": "structural_tag", **TAGS}, {"structural_tag": TAGS}]
OBJECTS += [{"json": FORM["schema"]}, {"json": 5}, {"regex": "a+"}, {"regex": ""}, {"regex": 5}, {"choice": ["a", "b"]}]
OBJECTS += [{"choice": []}, {"choice": [1]}, {"grammar": "start: /a/"}, {"json_object": True}, {"xml": "a"}]
OBJECTS += [{"regex": "a", "choice": ["a"]}, {"type": "function", "name": "add"}, {"type": "function"}]
OBJECTS += [{"type": "function", "function": {"name": "add"}}, {"type": "allowed_tools"}]
OBJECTS += [{"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}}]
OBJECTS += [{"format": {"type": "json_object"}}, {"format": {"type": "json_schema", **FORM}}, {"format": 5}]
OBJECTS += [{"format": {"type": "json_schema", "json_schema": FORM}}, {"include_usage": True}, {"include_usage": 1}]
VALUES = [None, True, False, *NUMBERS, *TEXTS, *LISTS, *OBJECTS]
"""What each field is tried with, whatever its type."""
WHOLE = {
    CHAT: {"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 1},
    COMPLETIONS: {"prompt": "a", "max_tokens": 1},
    RESPONSES: {"input": "a", "max_output_tokens": 1},
}
NEEDS = {"top_logprobs": {"logprobs": True}, "tool_choice": {"tools": [TOOL]}, "min_tokens": {"ignore_eos": True}}
NEEDS["stream_options"] = {"stream": True}
BETWEEN_FIELDS = {"min_tokens", "previous_response_id", "grounding", "chat_template_kwargs"}
BETWEEN_FIELDS |= {"continue_final_message"}
"""Fields of whose values some are refused for what the model is or what another field says."""
_BASE = jsonschema.Draft202012Validator
_INTEGERS = _BASE.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
_VALIDATOR = jsonschema.validators.extend(_BASE, type_checker=_INTEGERS)
"""To which 1e30 is no integer, as it is none here."""
SETTINGS = {"max_n": 8, "max_logprobs": 20}


@cache
def described():
    async def main():
        async with running(llama(), SETTINGS) as server:
            return (await server.client.get("/openapi.json")).json()

    return asyncio.run(main())


def request_schema(path):
    found = described()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return found | {"components": described()["components"]}


def fields_of(path):
    name = request_schema(path)["$ref"].rpartition("/")[2]
    return [field for field in described()["components"]["schemas"][name]["properties"] if field != "model"]


def bodies(path):
    """Each field with each value, in a request that is otherwise sound."""
    for field in fields_of(path):
        needed = NEEDS.get(field, {})
        if path == RESPONSES and field == "tool_choice":
            needed = {"tools": [FLAT_TOOL]}
        if path == RESPONSES and field == "top_logprobs":
            needed = {}
        for value in VALUES:
            yield field, value, {"model": "tiny", **WHOLE[path], **needed, field: value}


async def statuses(path, client):
    return [(field, value, body, (await client.post(path, body)).status) for field, value, body in bodies(path)]


@pytest.mark.parametrize("path", list(WHOLE))
def test_what_the_description_allows_is_what_is_answered(path):
    async def main():
        async with running(llama(), SETTINGS) as server:
            return await statuses(path, server.client)

    schema = _VALIDATOR(request_schema(path))
    found = asyncio.run(main())
    wrong = [
        f"{field}={value!r:.80}: {'allowed' if schema.is_valid(body) else 'not allowed'}, and answered with {status}"
        for field, value, body, status in found
        if field not in BETWEEN_FIELDS and schema.is_valid(body) != (status == 200)
    ]
    assert not wrong, "\n".join(wrong)
    assert {status for *_, status in found} <= {200, 400, 404}
    for field in fields_of(path):
        assert any(status == 200 for name, _, _, status in found if name == field), field
