"""Requests that no model could serve as they are, and statuses of every path."""

import asyncio
import base64

import pytest

from modelwright.server.app import ENDPOINTS, UNSUPPORTED, app_of
from tests.server.models import PICTURE, llama, nano
from tests.server.serving import CHAT, COMPLETIONS, RESPONSES, running

URL = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
SHOWN = {"type": "image_url", "image_url": {"url": URL}}
WORDS = {"type": "text", "text": "?"}


def ask(loaded, *bodies, path=CHAT, settings=None, limits=None):
    async def main():
        async with running(loaded, settings, limits) as server:
            return [await server.client.post(path, {"model": "tiny", **body}) for body in bodies]

    return asyncio.run(main())


def user(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": 1}


def test_row_20_pictures_where_there_can_be_none():
    [text_only] = ask(llama(), user(SHOWN, WORDS))
    system, many, assistant = ask(
        nano(),
        {"messages": [{"role": "system", "content": [SHOWN]}, {"role": "user", "content": "?"}]},
        user(*[SHOWN] * 17),
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": [SHOWN]}]},
    )
    for reply in (text_only, system, many, assistant):
        assert reply.status == 400, reply.body
    assert "reads text only" in text_only.error["message"]
    assert system.error["param"] == "messages[0].content[0]" and "user and tool" in system.error["message"]
    assert many.error["code"] == "too_many_pictures" and "16" in many.error["message"]
    assert assistant.error["param"] == "messages[1].content[0]"


def test_a_placeholder_in_words_is_no_picture():
    """The literal ``<image>`` beside a real picture: one picture, as many tokens as it has alone."""
    bodies = user(SHOWN, {"type": "text", "text": "<image>"}), user(SHOWN, WORDS)
    literal, plain = ask(nano(), *bodies, path=f"{CHAT}/input_tokens")
    assert literal.json()["picture_tokens"] == plain.json()["picture_tokens"] > 0


def test_row_25_more_tokens_than_the_cache_holds_are_all_answered():
    drawn = {"max_tokens": 120, "temperature": 0, "ignore_eos": True}
    bodies = [{"messages": [{"role": "user", "content": f"{n} " * 20}], **drawn} for n in range(8)]
    alone = [reply.json() for body in bodies for reply in ask(llama(), body)]

    async def main():
        async with running(llama(), limits={"num_pages": 24, "max_batch": 8}) as server:
            return await asyncio.gather(*(server.client.post(CHAT, {"model": "tiny", **body}) for body in bodies))

    for reply, expected in zip(asyncio.run(main()), alone, strict=True):
        assert reply.json()["choices"] == expected["choices"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
def test_row_26_a_request_larger_than_the_cache_is_refused_at_once(path):
    words = "x" * 200
    said = {"messages": [{"role": "user", "content": words}]}
    body = {CHAT: said, COMPLETIONS: {"prompt": words}, RESPONSES: {"input": words}}
    [reply] = ask(llama(), body[path], path=path, limits={"num_pages": 4})
    assert reply.status == 400 and reply.error["code"] == "request_too_large_for_cache"


def test_row_9_every_path_and_method_answers_in_the_one_form():
    async def main():
        async with running(llama()) as server:
            found = []
            own = [path for _, path, _ in ENDPOINTS]
            for path in (*own, RESPONSES, f"{RESPONSES}/x", f"{RESPONSES}/x/cancel", "/nope"):
                for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
                    where = path.replace("{model:path}", "zzz")
                    found.append((method, where, await server.client.ask(method, where, {})))
            for path in UNSUPPORTED:
                found.append(("POST", path, await server.client.post(path.replace("{rest:path}", "a/b"), {})))
            return found

    for method, path, reply in asyncio.run(main()):
        assert reply.status in (200, 400, 404, 405, 501), (method, path, reply.body)
        if reply.status != 200:
            assert reply.error["message"], (method, path)
        if reply.status == 405:
            assert method not in reply.headers["allow"]
    assert {reply.status for _, path, reply in asyncio.run(main()) if path in UNSUPPORTED} == {501}


def test_a_path_that_is_not_quite_one_of_ours_is_told_which_is():
    """A base URL without its /v1, or with it twice, is what clients are most often set to."""
    meant = {
        "/chat/completions": CHAT,
        "/v1/v1/chat/completions": CHAT,
        "//v1/chat/completions/": CHAT,
        "/openai/deployments/base/chat/completions": CHAT,
        "/v1/chat/completion": CHAT,
        "/v1/engines/base/completions": COMPLETIONS,
        "/responses": RESPONSES,
        "/models": "/v1/models",
        "/api/tags": None,
        "/": None,
        "/v1": None,
    }

    async def main():
        async with running(llama()) as server:
            unnamed = await server.client.post(CHAT, {"messages": [{"role": "user", "content": "a"}]})
            return unnamed, [await server.client.post(path, {}) for path in meant]

    unnamed, replies = asyncio.run(main())
    assert unnamed.error["message"] == "the request names no model; there is tiny"
    for (path, wanted), reply in zip(meant.items(), replies, strict=True):
        assert (reply.status, reply.error["code"]) == (404, "unknown_url")
        hint = "docs/server.md lists what is" if wanted is None else f"did you mean {wanted}?"
        assert reply.error["message"] == f"there is no {path} here; {hint}"


def test_row_11_every_path_of_the_application_needs_a_key():
    async def main():
        async with running(llama(), {"api_key": ("secret",)}) as server:
            paths = [route.path for route in app_of(server.parts).routes]
            asked = [(method, path) for path in paths for method in ("GET", "POST", "DELETE")]
            return len(paths), [(each, await server.client.ask(*each, {})) for each in asked]

    count, replies = asyncio.run(main())
    assert count == len(ENDPOINTS) + len(UNSUPPORTED) + 4
    for asked, reply in replies:
        assert reply.status == 401 and reply.error["code"] == "invalid_api_key", asked


def test_boxes_come_typed_and_a_stream_says_the_same():
    body = user(SHOWN) | {"temperature": 0, "max_tokens": 60, "grounding": {"locate": ["the red circle"]}}

    async def main():
        async with running(nano()) as server:
            whole = await server.client.post(CHAT, {"model": "tiny", **body})
            streamed = await server.client.post(CHAT, {"model": "tiny", "stream": True, **body})
            grounding = body["grounding"] | {"coordinates": "raw", "text": "plain"}
            raw = await server.client.post(CHAT, {"model": "tiny", **body, "grounding": grounding})
            unparsed = grounding | {"parse": False}
            bare = await server.client.post(CHAT, {"model": "tiny", **body, "grounding": unparsed})
            counted = {kept: server.counted("pictures_total", kept=kept) for kept in ("yes", "no")}
            stages = {stage: server.counted("picture_seconds_count", stage=stage) for stage in ("decode", "prepare")}
            return whole.json(), streamed.frames(), raw.json(), bare.json(), counted, stages

    whole, frames, raw, bare, counted, stages = asyncio.run(main())
    assert counted["yes"] + counted["no"] == 4 and counted["yes"] >= 2  # the first looks at a model forget
    assert stages == {"decode": 4, "prepare": 4}
    said = bare["choices"][0]["message"]
    assert "groundings" not in said and said["content"] == raw["choices"][0]["message"]["content"]
    message = whole["choices"][0]["message"]
    [box] = message["groundings"]
    assert box["label"] == "the red circle" and box["picture"] == 0 and message["groundings_skipped"] == []
    start, end = box["span"]
    assert message["content"][start:end] == "the red circle"
    deltas = [choice["delta"] for frame in frames[:-1] for choice in frame["choices"]]
    assert [each for delta in deltas for each in delta.get("groundings", [])] == [box]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    plain = raw["choices"][0]["message"]
    assert list(plain["groundings"][0]["box"]) == list(map(float, box["raw"])) and "<|" not in plain["content"]
