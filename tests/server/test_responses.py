"""Responses: items in and out, events whose ids are those of the end, and what is kept for whom."""

import asyncio
import json

import pytest

from modelwright.server.events import CallArguments, CallStart, NotGrounded, Reasoning, Text
from modelwright.server.response_items import Items
from modelwright.server.response_store import ResponseStore
from modelwright.server.wire.chat import TokenLogprob
from modelwright.server.wire.errors import ApiError
from tests.server.models import llama
from tests.server.serving import CHAT, RESPONSES, running

TOOLS = [
    {
        "type": "function",
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}},
            "required": ["a"],
            "additionalProperties": False,
        },
    }
]

INCLUDED_BY_OPENAI = (  # `ResponseIncludable` of its client, 3.57
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
)


def ask(**fields):
    return {"model": "tiny", "input": "Say something.", "temperature": 1, "max_output_tokens": 20} | fields


def run(*bodies, settings=None, path=RESPONSES):
    async def main():
        async with running(llama(), settings) as server:
            return [await server.client.post(path, body) for body in bodies]

    return asyncio.run(main())


def same(value, other):
    """Equal but for ids and times, which are each response's own."""
    own = ("id", "call_id", "created_at", "completed_at", "cached_tokens")

    def bare(part):
        if isinstance(part, dict):
            return {name: bare(each) for name, each in part.items() if name not in own}
        return [bare(each) for each in part] if isinstance(part, list) else part

    return bare(value) == bare(other)


@pytest.mark.parametrize("more", [{}, {"tools": TOOLS, "tool_choice": "required"}], ids=["text", "tools"])
def test_events_come_in_order_and_end_in_the_response(more):
    whole, streamed = run(ask(seed=4, **more), ask(seed=4, stream=True, **more))
    events = streamed.frames()
    assert events[-1] == "[DONE]" and whole.status == streamed.status == 200, whole.body
    events = events[:-1]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    end = events[-1]["response"]
    assert same(whole.json(), end) and end["id"] == events[0]["response"]["id"]
    for index, item in enumerate(end["output"]):
        own = [event for event in events if event.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added" and own[-1]["type"] == "response.output_item.done"
        assert own[0]["item"]["id"] == own[-1]["item"]["id"] == item["id"] and own[-1]["item"] == item
        assert all(event["item_id"] == item["id"] for event in own[1:-1])
        deltas = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        assert deltas == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
    headers = [line for line in streamed.body.decode().split("\n") if line.startswith("event: ")]
    assert [line.removeprefix("event: ") for line in headers] == kinds


def test_it_is_the_chats_answer():
    [said] = run(ask(seed=4, instructions="Be brief."))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something."}]
    body = {"model": "tiny", "messages": messages, "temperature": 1, "max_tokens": 20, "seed": 4}
    [chat] = run(body, path=CHAT)
    [item] = said.json()["output"]
    [choice] = chat.json()["choices"]
    assert item["content"][0]["text"] == choice["message"]["content"]
    usage = chat.json()["usage"]
    assert said.json()["usage"]["input_tokens"] == usage["prompt_tokens"]
    assert said.json()["usage"]["output_tokens"] == usage["completion_tokens"]
    status = "incomplete" if choice["finish_reason"] == "length" else "completed"
    assert said.json()["status"] == status


def test_items_of_every_kind_are_read():
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "2 + 2?"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 4}'},
        {"type": "function_call_output", "call_id": "c1", "output": "4"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Four."}]},
        {"type": "message", "role": "user", "content": "Sure?"},
    ]
    [reply] = run(ask(input=items), path=f"{RESPONSES}/input_tokens")
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 4}'}}
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "Sure?"},
    ]
    [chat] = run({"model": "tiny", "messages": messages}, path=f"{CHAT}/input_tokens")
    assert reply.json() == chat.json() and reply.json()["input_tokens"] > 20


@pytest.mark.parametrize("untyped", [{}, {"type": None}], ids=["left out", "null"])
def test_a_message_needs_no_type(untyped):
    said = [("system", "Be glad."), ("user", [{"type": "input_text", "text": "2 + 2?"}]), ("assistant", "Four.")]
    items = [{"role": role, "content": content} for role, content in (*said, ("user", "Sure?"))]
    typed, bare = run(
        ask(seed=4, input=[each | {"type": "message"} for each in items]),
        ask(seed=4, input=[each | untyped for each in items]),
        settings={"strict_fields": True},
    )
    assert typed.status == bare.status == 200, bare.body
    assert same(typed.json(), bare.json()) and typed.json()["usage"]["input_tokens"] > 20


DRAWN = [
    {"stop": "{"},
    {"stop_token_ids": [101, 97], "ignore_eos": True},
    {"min_tokens": 12, "repetition_penalty": 1.5},
    {"logit_bias": {"65": 100}},
    {"structured_outputs": {"choice": ["seven", "eight"]}},
    {"chat_template_kwargs": {"mood": "glad"}},
    {"bad_words": ["a"], "top_k": 3, "min_p": 0.01, "presence_penalty": 1, "frequency_penalty": 1},
]


@pytest.mark.parametrize("more", DRAWN, ids=lambda more: "+".join(more))
def test_how_it_is_drawn_is_said_as_in_chat(more):
    settings = {"strict_fields": True}
    plain, said = run(ask(seed=4), ask(seed=4, **more), settings=settings)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Say something."}], "seed": 4}
    [chat] = run(body | {"temperature": 1, "max_tokens": 20} | more, path=CHAT, settings=settings)
    assert said.status == chat.status == 200, said.body
    text = said.json()["output"][0]["content"][0]["text"]
    assert text == chat.json()["choices"][0]["message"]["content"] != plain.json()["output"][0]["content"][0]["text"]
    assert said.json()["usage"]["input_tokens"] == chat.json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"include": ["reasoning.plain_content"]}, "include"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"max_tokens": 3}, "max_tokens"),
    ],
    ids=str,
)
def test_what_is_not_served_is_refused(fields, param):
    [reply] = run(ask(**fields))
    assert reply.status in (400, 404) and reply.error["param"].startswith(param), reply.body


@pytest.mark.parametrize("name", INCLUDED_BY_OPENAI)
def test_what_clients_ask_to_include_in_any_case_is_told_as_ignored_where_no_answer_has_it(name):
    """Agents ask for encrypted thoughts of every model."""
    plain, reply = run(ask(seed=1), ask(seed=1, include=[name]))
    [strict] = run(ask(seed=1, include=[name]), settings={"strict_fields": True})
    assert reply.status == strict.status == 200
    if name == "message.output_text.logprobs":
        assert reply.json()["output"][0]["content"][0]["logprobs"]
        assert "x-modelwright-ignored" not in reply.headers
    else:
        assert reply.headers["x-modelwright-ignored"] == f"include.{name}"
        assert reply.json()["output"][0]["content"] == plain.json()["output"][0]["content"]


def test_what_is_kept_can_be_read_continued_and_dropped():
    async def main():
        async with running(llama(), {"responses_store": 2}) as server:
            first = (await server.client.post(RESPONSES, ask(seed=4))).json()
            path = f"{RESPONSES}/{first['id']}"
            read = (await server.client.get(path)).json()
            after = (await server.client.post(RESPONSES, ask(input="And?", previous_response_id=first["id"]))).json()
            unkept = (await server.client.post(RESPONSES, ask(store=False))).json()
            dropped = await server.client.ask("DELETE", path)
            gone = await server.client.get(path)
            missing = await server.client.get(f"{RESPONSES}/{unkept['id']}")
            ended = await server.client.post(f"{RESPONSES}/{after['id']}/cancel", {})
            return first, read, after, unkept, dropped, gone, missing, ended

    first, read, after, unkept, dropped, gone, missing, ended = asyncio.run(main())
    assert read == first and first["store"] and not unkept["store"]
    assert after["usage"]["input_tokens"] > first["usage"]["input_tokens"] + 3
    assert dropped.json() == {"id": first["id"], "object": "response", "deleted": True}
    assert gone.status == missing.status == 404 and gone.error["code"] == "response_not_found"
    assert ended.status == 400


def test_a_response_can_be_cancelled_while_it_runs():
    async def main():
        async with running(llama()) as server:
            body = ask(stream=True, max_output_tokens=900, ignore_eos=True)
            async with server.client.open("POST", RESPONSES, body) as request:
                pieces = request.body()
                first = (await anext(pieces)).decode()
                id_ = first.split('"id":"')[1].split('"')[0]
                cancelled = await server.client.post(f"{RESPONSES}/{id_}/cancel", {})
                rest = b"".join([piece async for piece in pieces])
            again = await server.client.post(f"{RESPONSES}/{id_}/cancel", {})
            await server.engine.drain(10)  # its thread lets go before the next step
            return cancelled.json(), rest, again

    cancelled, rest, again = asyncio.run(main())
    assert cancelled["status"] == "cancelled" and rest.endswith(b"data: [DONE]\n\n")
    assert b'"status":"cancelled"' in rest and again.status == 404
    assert b"event: response.incomplete" in rest and b"response.completed" not in rest


def test_items_of_a_stream_that_fails_end_too():
    """Clients put an answer together from the ends of its items, and none may stay `in_progress` for ever."""

    async def main():
        async with running(llama()) as server:
            body = ask(stream=True, max_output_tokens=900, ignore_eos=True)
            async with server.client.open("POST", RESPONSES, body) as request:
                pieces, said = request.body(), b""
                async for piece in pieces:
                    said += piece
                    if b"event: response.output_text.delta" in said:
                        break
                server.engine.close()
                return said + b"".join([piece async for piece in pieces])

    said = asyncio.run(main())
    assert said.endswith(b"data: [DONE]\n\n")
    lines = [line.removeprefix("data: ") for line in said.decode().split("\n") if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[-4:]] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.failed",
    ]
    [item] = events[-1]["response"]["output"]
    assert item["status"] == "incomplete" and item == events[-2]["item"]
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text and item["content"][0]["text"] == text == events[-4]["text"]


def test_a_store_is_bounded_by_number_and_bytes_and_apart_by_key():
    store = ResponseStore(3, most_bytes=10_000)
    for number in range(5):
        store.put("a", {"id": f"r{number}"}, [])
    with pytest.raises(ApiError):
        store.get("a", "r1")
    assert store.get("a", "r2").response == {"id": "r2"}
    store.put("a", {"id": "r5"}, [])  # r2 was used last, so that r3 goes
    with pytest.raises(ApiError):
        store.get("a", "r3")
    with pytest.raises(ApiError):
        store.get("b", "r2")
    store.put("a", {"id": "big"}, [{"content": "x" * 9_990}])
    with pytest.raises(ApiError):
        store.get("a", "r5")
    store.put("a", {"id": "huge"}, [{"content": "x" * 20_000}])
    with pytest.raises(ApiError):
        store.get("a", "huge")


def logprobs_of(output):
    return [len(part["logprobs"]) for item in output if item["type"] == "message" for part in item["content"]]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_belong_to_words_and_break_no_call(stream):
    include = {"include": ["message.output_text.logprobs"]}
    bodies = [ask(tools=TOOLS, seed=seed, max_output_tokens=300, stream=stream, **include) for seed in range(10)]
    bodies += [ask(tools=TOOLS, tool_choice="required", stream=stream, max_output_tokens=900, **include)]
    calls = 0
    for reply in run(*bodies):
        response = reply.frames()[-2]["response"] if stream else reply.json()
        kinds = [item["type"] for item in response["output"]]
        assert response["status"] in ("completed", "incomplete")
        assert all(kind in ("message", "function_call") for kind in kinds) and kinds.count("message") <= 1
        said = [item["content"][0]["text"] for item in response["output"] if item["type"] == "message"]
        assert all(said) or kinds == ["message"]
        calls += kinds.count("function_call")
    assert calls


def test_log_probabilities_of_every_token_of_words_are_told_in_pieces_and_at_the_end():
    include = {"include": ["message.output_text.logprobs"], "stop": ["zzz"], "ignore_eos": True}
    whole, streamed = run(ask(seed=3, **include), ask(seed=3, stream=True, **include))
    assert logprobs_of(whole.json()["output"]) == [20]
    frames = streamed.frames()[:-1]
    deltas = [each["logprobs"] for each in frames if each["type"] == "response.output_text.delta"]
    assert sum(map(len, deltas)) == 20 == logprobs_of(frames[-1]["response"]["output"])[0]


def test_thoughts_have_no_log_probabilities_and_stay_in_one_item():
    def told(text):
        return [TokenLogprob(text, -1.0, list(text.encode()), [])]

    items = Items(grounds=False, logprobs=True)
    for event in (Reasoning("a"), Reasoning("b"), None, Text("c"), None):
        items.take([] if event is None else [event], told("x"))
    items.finish("completed")
    assert [item["type"] for item in items.output] == ["reasoning", "message"]
    assert logprobs_of(items.output) == [2] and items.output[1]["content"][0]["text"] == "c"


def test_what_is_no_box_is_told_of_the_message_though_a_call_follows_it():
    items = Items(grounds=True, logprobs=False)
    items.take([Text("I see it"), CallStart(0, "call_1", "f"), CallArguments(0, "{}")], [])
    [told] = items.take([NotGrounded("it", "no boxes follow")], [])
    items.finish("completed")
    message, call = items.output
    assert (told["item_id"], told["output_index"]) == (message["id"], 0) and call["arguments"] == "{}"
    assert [each["text"] for each in message["groundings_skipped"]] == ["it"]


def test_two_messages_of_the_system_become_one_however_they_are_written():
    parts = [{"type": "input_text", "text": "A"}]
    for first, second in (("A", "B"), (parts, "B"), ("A", parts), (parts, parts)):
        items = [{"role": "system", "content": first}, {"role": "developer", "content": second}]
        [reply] = run(ask(input=[*items, {"role": "user", "content": "C"}], max_output_tokens=1))
        assert reply.status == 200, reply.json()


@pytest.mark.parametrize("named", [{"name": "add"}, {"function": {"name": "add"}}], ids=["flat", "in chat's form"])
@pytest.mark.parametrize("nested", [False, True])
def test_allowed_tools_are_said_as_openai_says_them(nested, named):
    allowed = {"mode": "required", "tools": [{"type": "function", **named}]}
    choice = {"type": "allowed_tools", **({"allowed_tools": allowed} if nested else allowed)}
    other = TOOLS[0] | {"name": "other"}
    [reply] = run(ask(tools=[other, *TOOLS], tool_choice=choice, max_output_tokens=900, seed=1))
    assert [item["name"] for item in reply.json()["output"] if item["type"] == "function_call"][:1] == ["add"]
