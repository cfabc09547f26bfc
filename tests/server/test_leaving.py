"""Clients who leave, lag or come in crowds: what each costs, what is counted, and that the others notice nothing."""

import asyncio
import base64
import time

import pytest

from tests.server.models import PICTURE, llama, nano
from tests.server.serving import CHAT, COMPLETIONS, RESPONSES, running

HI = [{"role": "user", "content": "hello"}]
LONG = {"model": "tiny", "messages": HI, "max_tokens": 900, "ignore_eos": True, "temperature": 0}


async def until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        await asyncio.sleep(0.002)


def idle(server):
    return server.engine.waiting == server.engine.running == 0 and len(server.parts.live) == 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("phase", ["queue", "decode"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, LONG),
        (COMPLETIONS, {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 900, "ignore_eos": True}),
        (RESPONSES, {"model": "tiny", "input": "hello", "max_output_tokens": 900, "seed": 5}),
    ],
    ids=["chat", "completions", "responses"],
)
def test_row_27_whoever_leaves_is_ended_and_counted_by_where_it_was(path, body, phase, stream):
    async def main():
        async with running(llama(), limits={"max_batch": 1}) as server:
            in_front = None
            if phase == "queue":
                in_front = server.client.open("POST", CHAT, LONG | {"stream": True})
                await in_front.__aenter__()
                await until(lambda: server.engine.running == 1)
            async with server.client.open("POST", path, body | {"stream": stream}):
                await until(lambda: any(live.phase == phase for live in server.parts.live.seen_by(None)[-1:]))
                if phase == "queue":
                    await until(lambda: server.engine.waiting >= 1)
            counted = server.counted("requests_aborted_total", where=phase)
            if in_front is not None:
                await in_front.__aexit__(None, None, None)
            await until(lambda: idle(server))
            again = await server.client.post(CHAT, LONG | {"max_tokens": 3})
            return counted, again.status, server.lines

    counted, status, lines = asyncio.run(main())
    assert counted == 1 and status == 200
    assert any(f"aborted={phase}" in line for line in lines)


def test_row_27_whoever_leaves_while_a_picture_is_read_is_ended(monkeypatch):
    url = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
    body = {"model": "vl2-nano", "messages": [{"role": "user", "content": content}]}

    async def main():
        async with running(nano(), name="vl2-nano") as server:
            reading, go_on = asyncio.Event(), asyncio.Event()
            pictures = server.parts.preparation._pictures
            read = pictures.read

            async def slowly(sources):
                reading.set()
                await go_on.wait()
                return await read(sources)

            monkeypatch.setattr(pictures, "read", slowly)
            async with server.client.open("POST", CHAT, body):
                await reading.wait()
            go_on.set()
            await until(lambda: idle(server))
            return server.counted("requests_aborted_total", where="picture")

    assert asyncio.run(main()) == 1


def test_row_28_beyond_the_queue_is_refused_at_once_and_health_stays(monkeypatch):
    async def main():
        async with running(llama(), {"max_queue": 2}, {"max_batch": 1}) as server:
            held = [server.client.open("POST", CHAT, LONG | {"stream": True}) for _ in range(3)]
            for each in held:
                await each.__aenter__()
            await until(lambda: server.engine.running + server.engine.waiting == 3)
            refused = await asyncio.gather(*(server.client.post(CHAT, LONG) for _ in range(50)))
            probes = [(await server.client.get(path)).status for path in ("/health", "/livez", "/readyz")]
            for each in held:
                await each.__aexit__(None, None, None)
            await until(lambda: idle(server))
            after = await server.client.post(CHAT, LONG | {"max_tokens": 2})
            return refused, probes, after.status, server.counted("requests_refused_total", code="queue_full")

    refused, probes, after, counted = asyncio.run(main())
    assert {reply.status for reply in refused} == {429} and counted == 50
    assert {reply.error["code"] for reply in refused} == {"queue_full"}
    for reply in refused:
        assert 1 <= int(reply.headers["retry-after"]) <= 60 and int(reply.headers["retry-after-ms"]) >= 1000
    assert probes == [200, 200, 200] and after == 200


def test_who_sends_slowly_takes_nobodys_place():
    """Ten bodies that are on their way, where three requests are taken: one that is whole is answered."""

    async def main():
        async with running(llama(), {"max_queue": 2}, {"max_batch": 1}) as server:
            slow = [server.client.open("POST", CHAT, LONG, {"x-slow": "1"}) for _ in range(10)]
            for each in slow:
                await each.__aenter__()
            whole = await server.client.post(CHAT, LONG | {"max_tokens": 2})
            for each in slow:
                await each.__aexit__(None, None, None)
            return whole.status

    assert asyncio.run(main()) == 200


def test_tokens_that_wait_are_bounded_too():
    long = LONG | {"messages": [{"role": "user", "content": "x" * 300}]}

    async def main():
        async with running(llama(), {"max_queue_tokens": 700}, {"max_batch": 1}) as server:
            held = [server.client.open("POST", CHAT, long | {"stream": True}) for _ in range(3)]
            await held[0].__aenter__()
            await until(lambda: server.engine.running == 1)
            for each in held[1:]:
                await each.__aenter__()
            await until(lambda: server.engine.waiting == 2)
            refused = await server.client.post(CHAT, long)
            for each in held:
                await each.__aexit__(None, None, None)
            await until(lambda: idle(server))
            return refused

    refused = asyncio.run(main())
    assert refused.status == 429 and refused.error["code"] == "queue_tokens_full"


def test_row_29_a_reader_who_takes_nothing_is_cut_off_and_others_are_not(monkeypatch):
    async def main():
        async with running(llama(), {"write_timeout": 0.3}) as server:
            async with server.client.open("POST", CHAT, LONG | {"stream": True}) as slow:
                await until(lambda: len(slow.sent) > 3)
                slow.taking.clear()
                quick = await server.client.post(CHAT, LONG | {"max_tokens": 30})
                await until(lambda: slow.task.done())
            await until(lambda: idle(server))
            return quick, server.counted("requests_aborted_total", where="slow_reader")

    quick, counted = asyncio.run(main())
    assert quick.status == 200 and counted == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_row_30_what_fails_in_the_model_ends_that_request_alone(monkeypatch, stream):
    """Its own error, in a frame or as a reply; whoever runs beside it answers as in a quiet run."""

    async def main(poisoned):
        async with running(llama()) as server:
            engine = server.engine._engine
            run = engine._runner.run

            def failing(step, pictures):
                if any(chunk.sequence.tokens[-1] == bad for chunk in step.chunks):
                    raise RuntimeError("the kernel failed")
                return run(step, pictures)

            bad = llama().tokenizer.encode("~")[0]
            monkeypatch.setattr(engine._runner, "run", failing)
            never = {"logit_bias": {str(bad): -100}, "max_tokens": 20, "temperature": 1}
            good = [LONG | never | {"seed": seed} for seed in range(4)]
            asked = [server.client.post(CHAT, body) for body in good]
            if poisoned:
                ends = {"model": "tiny", "prompt": "poison~", "max_tokens": 5, "stream": stream}
                asked.append(server.client.post(COMPLETIONS, ends))
            replies = await asyncio.gather(*asked)
            await until(lambda: idle(server))
            again = await server.client.post(CHAT, good[0])
            return replies, again

    replies, again = asyncio.run(main(True))
    quiet, _ = asyncio.run(main(False))
    texts = [reply.json()["choices"][0]["message"]["content"] for reply in replies[:4]]
    assert texts == [reply.json()["choices"][0]["message"]["content"] for reply in quiet]
    assert again.json()["choices"][0]["message"]["content"] == texts[0]
    broken = replies[4]
    if stream:
        *_, error, done = broken.frames()
        assert done == "[DONE]" and error["error"]["code"] == "model_failed"
    else:
        assert broken.status == 500 and broken.error["code"] == "model_failed"


def test_a_stream_that_is_drained_says_why_it_ends():
    async def main():
        async with running(llama()) as server:
            async with server.client.open("POST", CHAT, LONG | {"stream": True}) as request:
                await until(lambda: len(request.sent) > 3)
                await server.engine.drain(0.01)
                reply = await request.reply()
            refused = await server.client.post(CHAT, LONG)
            return reply, refused

    reply, refused = asyncio.run(main())
    *_, error, done = reply.frames()
    assert done == "[DONE]" and error["error"]["code"] == "shutting_down"
    assert refused.status == 503 and refused.error["code"] == "shutting_down" and refused.headers["retry-after"]


def test_times_that_a_request_and_a_server_set():
    async def main():
        async with running(llama(), limits={"max_batch": 1}) as server:
            own = await server.client.post(CHAT, LONG | {"timeout": 0.2})
        async with running(llama(), {"request_timeout": 0.2}) as server:
            all_ = await server.client.post(CHAT, LONG | {"timeout": 60})
        async with running(llama(), {"queue_timeout": 0.5}, {"max_batch": 1}) as server:
            server.engine.watch_steps(lambda _: time.sleep(0.005))  # the first, begun in time, needs 4 seconds and more
            async with server.client.open("POST", CHAT, LONG | {"stream": True}):
                await until(lambda: server.engine.running == 1)
                late = await server.client.post(CHAT, LONG)
        return own, all_, late

    own, all_, late = asyncio.run(main())
    codes = {"request_timeout": 400, "queue_timeout": 503}  # the latter where a busy machine had not even begun
    assert codes[own.error["code"]] == own.status and codes[all_.error["code"]] == all_.status
    assert late.status == 503 and late.error["code"] == "queue_timeout"
    for reply, limit in ((own, "0.2"), (all_, "0.2"), (late, "0.5")):  # as it was set, not what was left of it
        assert f"in {limit} seconds, and was not" in reply.error["message"]


def test_row_34_what_is_found_in_the_cache_changes_no_answer_and_salts_keep_apart():
    ask = LONG | {"max_tokens": 30, "messages": [{"role": "user", "content": "y" * 200}]}

    async def main():
        async with running(llama()) as server:
            replies = [await server.client.post(CHAT, ask) for _ in range(2)]
            salted = [await server.client.post(CHAT, ask | {"cache_salt": salt}) for salt in ("a", "a", "b")]
            return [reply.json() for reply in (*replies, *salted)]

    replies = asyncio.run(main())
    texts = {reply["choices"][0]["message"]["content"] for reply in replies}
    cached = [reply["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in replies]
    assert len(texts) == 1 and cached[0] == cached[2] == cached[4] == 0 and cached[1] == cached[3] > 100


def test_pings_and_progress_while_nothing_is_drawn():
    async def main():
        one = running(llama(), {"ping_seconds": 0.05}, {"max_batch": 1})
        async with one as server, server.client.open("POST", CHAT, LONG | {"stream": True}):
            await until(lambda: server.engine.running == 1)
            async with server.client.open("POST", CHAT, LONG | {"stream": True}) as quiet:
                await until(lambda: any(b": ping" in message.get("body", b"") for message in quiet.sent))
            told = LONG | {"stream": True, "stream_options": {"include_progress": True}}
            async with server.client.open("POST", CHAT, told) as asking:
                await until(lambda: any(b'"progress"' in message.get("body", b"") for message in asking.sent))
                return b"".join(message.get("body", b"") for message in asking.sent)

    body = asyncio.run(main())
    assert b'"phase":"queued"' in body and b'"choices":[]' in body and b'"prompt_tokens":' in body


def test_the_status_shows_each_key_its_own_requests_and_no_text():
    async def main():
        async with running(llama(), {"api_key": ("k1", "k2")}) as server:
            said = {"authorization": "Bearer k1"}
            async with server.client.open("POST", CHAT, LONG | {"stream": True}, said) as request:
                await until(lambda: len(request.sent) > 3)
                own = await server.client.get("/v1/status", **said)
                other = await server.client.get("/v1/status", authorization="Bearer k2")
            return own.json(), other.json()

    own, other = asyncio.run(main())
    [live] = own["requests"]
    assert live["phase"] == "decode" and live["completion_tokens"] > 0 and "hello" not in str(own)
    assert other["running"] == 1 and other["requests"] == []
