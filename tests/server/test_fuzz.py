"""Thousands of damaged requests: each is answered, by an error in the one form or an answer, and none stays behind."""

import asyncio
import copy
import json
import random
from typing import Any

import pytest

from tests.server.models import llama
from tests.server.serving import CHAT, COMPLETIONS, RESPONSES, running

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SEEDS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0.5,
            "n": 1, "stop": ["x"], "logit_bias": {"5": 1}, "logprobs": True, "top_logprobs": 2, "seed": 1}),
    (CHAT, {"model": "tiny", "messages": [
        {"role": "system", "content": [{"type": "text", "text": "be"}]},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "4"},
    ], "tools": [TOOL], "tool_choice": "auto", "max_tokens": 2, "stream": True}),
    (CHAT, {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "response_format": {
        "type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "properties": {
            "a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}}},
        "chat_template_kwargs": {"mood": "x"}, "stream_options": {"include_usage": True}, "timeout": 5}),
    (COMPLETIONS, {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 2, "echo": True, "logprobs": 1}),
    (COMPLETIONS, {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 1, "structured_outputs": {"regex": "a+"}}),
    (RESPONSES, {"model": "tiny", "input": [{"type": "message", "role": "user", "content": [
        {"type": "input_text", "text": "hi"}]}], "max_output_tokens": 2, "text": {"format": {"type": "text"}},
        "instructions": "be", "include": [], "metadata": {"a": "b"}}),
    ("/tokenize", {"model": "tiny", "prompt": "hello", "add_special_tokens": True, "return_token_strs": True}),
    ("/detokenize", {"model": "tiny", "tokens": [1, 2, 3]}),
]  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 3.5, 10**9, 10**18, 10**30, -(2**63), 1e300, "", "x", "\u0000", "a" * 5000, "é😀",
    "\ufdd0", "<|im_end|>", [], {}, [[]], [None], {"a": {}}, {"type": "x"}, ["x"] * 100, {"role": "user"}, [[[[[[]]]]]],
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything inside."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        found += places(each, (*path, key))
    return found


def damaged(body: dict[str, Any], draw: random.Random) -> bytes:
    """A body with one to three things changed, and sometimes its bytes too."""
    body = copy.deepcopy(body)
    for _ in range(draw.randint(1, 3)):
        path = draw.choice(places(body))
        inside: Any = body
        for key in path[:-1]:
            inside = inside[key]
        kind = draw.randrange(4)
        if kind == 0:
            del inside[path[-1]]
        elif kind == 1 and isinstance(inside, dict):
            inside[draw.choice(["x", "n", "stream", "content", "tools", "guided_json"])] = draw.choice(ODD)
        else:
            inside[path[-1]] = copy.deepcopy(draw.choice(ODD))
        if not places(body):
            break
    raw = bytearray(json.dumps(body).encode())
    if draw.random() < 0.2 and raw:
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(raw))
            raw[at : at + draw.randrange(3)] = bytes(draw.randrange(256) for _ in range(draw.randrange(3)))
    return bytes(raw)


async def storm(count: int, seed: int) -> dict[int, int]:
    """How many answers of each status `count` damaged requests got."""
    draw, statuses = random.Random(seed), dict[int, int]()
    async with running(llama(), {"default_max_tokens": 2, "max_n": 2}) as server:

        async def one(path: str, body: bytes) -> None:
            reply = await asyncio.wait_for(server.client.post(path, body), 600)
            statuses[reply.status] = statuses.get(reply.status, 0) + 1
            assert reply.status in (200, 400, 403, 404, 413, 501), (path, body, reply.body)
            if reply.status != 200:
                assert 0 < len(reply.error["message"]) <= 1000 and "Traceback" not in reply.error["message"]
            elif reply.headers["content-type"].startswith("text/event-stream"):
                assert reply.frames()[-1] == "[DONE]"
            else:
                assert isinstance(reply.json(), dict)

        for _ in range(count // 10):
            path, body = draw.choice(SEEDS)
            await asyncio.gather(*(one(path, damaged(body, draw)) for _ in range(10)))
        assert server.engine.waiting == server.engine.running == 0
        reply = await server.client.post(*SEEDS[0])
        assert reply.status == 200  # alive
    return statuses


@pytest.mark.parametrize("seed", range(2))
def test_some_damaged_bodies(seed):
    statuses = asyncio.run(storm(200, seed))
    assert statuses[400] > 50 and statuses[200] > 5


@pytest.mark.slow
def test_five_thousand_damaged_bodies():
    statuses = asyncio.run(storm(5000, 99))
    assert sum(statuses.values()) == 5000
