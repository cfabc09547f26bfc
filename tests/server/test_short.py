"""Short requests are made ready on the event loop, as long as that has time for it, and all others in threads."""

import asyncio
import threading
from typing import Any

import pytest

from modelwright.server import short
from modelwright.server.json_body import as_struct
from modelwright.server.loop_time import MOST, SHARE, LoopTime
from modelwright.server.short import CHARACTERS, MESSAGES, is_short
from modelwright.server.wire.chat import ChatRequest
from modelwright.server.wire.completions import CompletionRequest
from tests.server.models import llama
from tests.server.serving import CHAT, COMPLETIONS, RESPONSES, Running, running
from tests.server.test_requests import SHOWN, WORDS

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def says(content: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages) or [says("hello")], **more}


SHORT = {
    "a question": chat(),
    "a conversation": chat(says("be kind", "system"), says("hello"), says("yes", "assistant"), says("x" * 2000)),
    "settings": chat(temperature=0.5, stop=["a"], n=2, logprobs=True, seed=1, stream=True),
    "a prompt": {"prompt": "hello", "max_tokens": 3, "echo": True},
}
LONG = {
    "a long text": chat(says("x" * (CHARACTERS + 1))),
    "long together": chat(*[says("x" * 300)] * 8),
    "many messages": chat(*[says("x")] * (MESSAGES + 1)),
    "a picture": chat(says([SHOWN, WORDS])),
    "parts": chat(says([WORDS])),
    "a schema": chat(response_format={"type": "json_object"}),
    "a choice": chat(structured_outputs={"choice": ["a", "b"]}),
    "tools": chat(tools=[TOOL]),
    "a call": chat(says("?"), says(None, "assistant", tool_calls=[CALL]), says("1", "tool", tool_call_id="a")),
    "boxes": chat(grounding={"constrain": True}),
    "words": chat(bad_words=["a"]),
    "biases": chat(logit_bias={"1": 1.0}),
    "variables": chat(chat_template_kwargs={"mood": "x"}),
    "a special token": chat(says("a <|im_end|> b")),
    "a long prompt": {"prompt": "x" * (CHARACTERS + 1)},
    "prompts": {"prompt": ["a", "b"]},
    "token ids": {"prompt": [1, 2]},
}


@pytest.mark.parametrize(("name", "body"), [*SHORT.items(), *LONG.items()], ids=str)
def test_which_requests_are_short(name: str, body: dict[str, Any]):
    kind: Any = ChatRequest if "messages" in body else CompletionRequest
    assert is_short(as_struct(body, kind), lambda text: "<|im_end|>" not in text) == (name in SHORT)


def test_the_loop_gives_a_share_of_its_time():
    now = 0.0
    time = LoopTime(lambda: now)

    def work(seconds: float) -> int:
        nonlocal now
        now += seconds
        return 3

    assert time.left() and time.run(lambda: work(10 * MOST)) == 3
    with pytest.raises(ZeroDivisionError):
        time.run(lambda: work(MOST) and 1 // 0)
    now += 10 * MOST / SHARE - 11 * MOST - 1e-6  # what was taken beyond its time is paid back
    assert not time.left()
    now += 1e-5
    assert time.left()
    now += 1000.0
    assert time.left() and time.run(lambda: work(1.3 * MOST)) == 3  # there is no more after any pause
    assert not time.left()


def where_made(server: Running) -> list[bool]:
    """For each request that becomes ready from now on whether that was done on the loop."""
    prepare, loop, seen = server.engine.prepare, threading.current_thread(), []

    def watched(*arguments: Any, **named: Any) -> Any:
        seen.append(threading.current_thread() is loop)
        return prepare(*arguments, **named)

    server.engine.prepare = watched  # type: ignore[method-assign]
    return seen


def test_what_is_short_stays_on_the_loop_until_its_time_is_spent():
    asked = [
        (CHAT, chat()),
        (COMPLETIONS, {"prompt": "hello"}),
        (CHAT, chat(tools=[TOOL])),
        (COMPLETIONS, LONG["token ids"]),
    ]

    async def main(left: float) -> list[bool]:
        async with running(llama(), limits={"num_pages": 1024}) as server:
            seen = where_made(server)
            for path, body in asked:
                time = server.parts.preparation._loop_time = LoopTime(lambda: 0.0)
                time._left = left
                reply = await server.client.post(path, {"model": "tiny", "max_tokens": 1, **body})
                assert reply.status == 200, reply.body
            return seen

    assert asyncio.run(main(MOST)) == [True, True, False, False]
    assert asyncio.run(main(0.0)) == [False] * 4


def test_a_conversation_that_was_kept_counts_with_its_length(monkeypatch: pytest.MonkeyPatch):
    """A short request may go on from a long conversation."""
    monkeypatch.setattr(short, "CHARACTERS", 100)

    async def main() -> list[bool]:
        async with running(llama(), {"responses_store": 4}, {"num_pages": 1024}) as server:
            server.parts.preparation._loop_time = LoopTime(lambda: 0.0)
            seen, asked = where_made(server), {"model": "tiny", "max_output_tokens": 1}
            for size in (10, 110):
                first = (await server.client.post(RESPONSES, asked | {"input": "x" * size})).json()
                again = asked | {"input": "?", "previous_response_id": first["id"]}
                assert (await server.client.post(RESPONSES, again)).status == 200
            return seen

    assert asyncio.run(main()) == [True, True, False, False]
