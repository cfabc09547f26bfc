"""What is no request, or too many of them: always an error with a body, never a hang, and the server lives on."""

import json
import socket
import time

import pytest

from tests.server.echo import echo
from tests.server.live import Live, serving

HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def live():
    limits = {"body_timeout": 0.4, "keep_alive": 0.3}
    with serving(echo(**limits), **limits) as server:
        yield server


def alive(live: Live) -> None:
    assert live.ask("/v1/x", "POST", {"a": 1}).body == b'{"a": 1}'


BROKEN = {
    "no request": b"GARBAGE\r\n\r\n",
    "TLS": bytes.fromhex("160301020001000001fc0303") + b"\0" * 64,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "version": b"GET /health HTTP/3.7\r\n" + HOST + b"\r\n",
    "unknown method": b"FROB /v1/x HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT a.example:1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "null in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n",
    "space before the colon": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length : 5\r\n\r\n12345",
    "both lengths": b"POST / HTTP/1.1\r\n"
    + HOST
    + JSON
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both, in the other order": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    "a signed length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +5\r\n\r\n12345",
    "a huge length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
    "another coding": b"POST / HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coded twice": b"POST / HTTP/1.1\r\n"
    + HOST
    + JSON
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding of its own": b"POST / HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coded in 1.0": b"POST / HTTP/1.0\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk's size": b"POST / HTTP/1.1\r\n"
    + HOST
    + JSON
    + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "an upgrade with a body": b"POST /v1/x HTTP/1.1\r\n"
    + HOST
    + JSON
    + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
    "many headers": b"GET / HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 200 + b"\r\n",
    "a long header": b"GET / HTTP/1.1\r\n" + HOST + b"x: " + b"a" * 70_000 + b"\r\n\r\n",
    "a header without end": b"GET / HTTP/1.1\r\n" + HOST + b"x: " + b"a" * 70_000,
    "a long path": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "half a request": b"GET / HTTP/1.1\r\nHost: loc",
    "no host": b"GET /v1/x HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/x HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_request_is_an_error_with_a_body(live, name):
    reply = live.say(BROKEN[name])
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"408", b"431") and reply.count(b"HTTP/1.1 4") == 1
    error = json.loads(body)["error"]
    assert error["code"] in ("invalid_http", "invalid_value", "headers_too_large", "body_timeout")
    alive(live)


def test_requests_behind_one_another_are_answered_in_order(live):
    one = b"POST /v1/x HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 1\r\n\r\n"
    with live.connect() as connection:
        connection.sendall(b"".join(one + b"%d" % number for number in range(5)))
        got = b""
        while got.count(b"HTTP/1.1 200") < 5 or not got.endswith(b"4"):
            got += connection.recv(65536)
    assert [part.rpartition(b"\r\n\r\n")[2] for part in got.split(b"HTTP/1.1 200 OK")[1:]] == [
        b"0",
        b"1",
        b"2",
        b"3",
        b"4",
    ]


def test_garbage_behind_a_request_takes_nothing_from_its_answer(live):
    one = b"POST /v1/slow HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 2\r\n\r\n{}"
    reply = live.say(one + b"GARBAGE\r\n\r\n")
    assert reply.count(b"HTTP/1.1 ") == 1 and reply.startswith(b"HTTP/1.1 200") and reply.endswith(b"{}")


def test_an_idle_connection_is_ended_and_one_that_never_asks_too(live):
    assert live.say(b"") == b""
    assert live.say(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n").startswith(b"HTTP/1.1 200")


def test_head_and_options_have_no_surprises(live):
    assert live.ask("/health", "HEAD").body == b"" and live.ask("/health", "HEAD").status == 200
    assert live.ask("/health", "POST", {}).code == "method_not_allowed"
    assert live.ask("/health", "OPTIONS").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("more", [b"", b"Connection: keep-alive\r\n"], ids=["plain", "asks to be kept"])
def test_http_1_0_is_told_no_chunks_and_its_streams_end_with_the_connection(more):
    """As a proxy asks whose settings say nothing else, such as older nginx."""
    parts = [b"data: 1\n\n", b"data: [DONE]\n\n"]

    async def streams(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number, part in enumerate(parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    with serving(streams) as live:
        head, _, body = live.say(b"GET /v1/x HTTP/1.0\r\n" + HOST + more + b"\r\n").partition(b"\r\n\r\n")
        assert body == b"".join(parts)
        assert b"transfer-encoding" not in head and b"\r\nconnection: close" in head
        assert b"connection: close" not in one_head(live, b"GET /v1/x HTTP/1.1\r\n" + HOST + b"\r\n")
    with serving(echo()) as live:
        asked = b"POST /v1/x HTTP/1.0\r\n" + HOST + JSON + more + b"Content-Length: 2\r\n\r\n{}"
        head, _, body = live.say(asked).partition(b"\r\n\r\n")
        assert body == b"{}" and b"\r\ncontent-length: 2" in head and b"\r\nconnection: close" in head


def one_head(live: Live, asked: bytes) -> bytes:
    """The headers that come back on a connection that may stay open."""
    with live.connect() as connection:
        connection.sendall(asked)
        got = b""
        while b"\r\n\r\n" not in got:
            got += connection.recv(65536)
    head = got.partition(b"\r\n\r\n")[0]
    assert b"transfer-encoding: chunked" in head
    return head


def test_connections_are_limited_of_an_address_and_counted_back():
    limits = {"max_connections_per_address": 3, "body_timeout": 5.0}
    with serving(echo(**limits), **limits) as live:
        held = [live.connect() for _ in range(3)]
        time.sleep(0.05)
        reply = live.say(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert reply.startswith(b"HTTP/1.1 503") and b'"too_many_connections"' in reply and b"retry-after" in reply
        for connection in held:
            connection.close()
        deadline = time.monotonic() + 5
        while live.listener.connections.all and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not live.listener.connections.of_address
        alive(live)


def test_row_29_a_client_that_takes_nothing_is_cut_off_and_others_are_not():
    seen = []

    async def flood(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        if scope["path"] == "/v1/flood":
            while (await receive())["type"] != "http.disconnect" if len(seen) else True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                if scope["state"].get("cut"):
                    seen.append(scope["state"]["cut"])
                    return
        await send({"type": "http.response.body", "body": b"fine"})

    with serving(flood, write_timeout=0.3) as live, live.connect() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"GET /v1/flood HTTP/1.1\r\n" + HOST + b"\r\n")
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            assert live.ask("/v1/x").body == b"fine"
            time.sleep(0.02)
        assert seen == ["slow_reader"]


def test_a_request_that_is_refused_before_its_body_is_here_is_told_that_the_connection_ends(live):
    """RFC 9112, 9.6: whoever sends the next request on it would find it closed. A whole request keeps it."""
    body = b'{"a": 1}'
    head = b"POST /v1/x HTTP/1.1\r\nHost: %s\r\n" + JSON + b"Content-Length: %d\r\n\r\n"
    early = live.say(head % (b"evil.example", 200_000) + body)
    assert b" 403 " in early.split(b"\r\n")[0] and b"connection: close" in early.lower()
    whole = live.say(head % (b"evil.example", len(body)) + body + head % (b"localhost", len(body)) + body)
    assert whole.count(b"HTTP/1.1") == 2 and b"connection: close" not in whole.lower()
