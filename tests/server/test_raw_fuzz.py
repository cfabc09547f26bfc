"""Thousands of mutated requests over raw sockets: never 5xx, never a hang, an error body where there is an answer."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.echo import echo
from tests.server.live import serving
from tests.server.test_connection import BROKEN, HOST, JSON

GOOD = [
    b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n",
    b"POST /v1/x HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 8\r\n\r\n" + b'{"a": 1}',
    b"POST /v1/x HTTP/1.1\r\n"
    + HOST
    + JSON
    + b"Transfer-Encoding: chunked\r\n\r\n8\r\n"
    + b'{"a": 1}'
    + b"\r\n0\r\n\r\n",
    b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\nGET /readyz HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
]
PIECES = [
    b"\r\n",
    b"\n",
    b"\0",
    b":",
    b" ",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"0\r\n\r\n",
    b"\xff",
]


def mutated(draw: random.Random) -> bytes:
    """One of the requests above, with some bytes gone, doubled or of another kind."""
    raw = bytearray(draw.choice([*GOOD, *BROKEN.values()]))
    for _ in range(draw.randint(0, 4)):
        at = draw.randrange(len(raw) + 1)
        kind = draw.randrange(4)
        if kind == 0:
            del raw[at : at + draw.randint(1, 12)]
        elif kind == 1:
            raw[at:at] = draw.choice(PIECES)
        elif kind == 2:
            raw[at:at] = raw[at : at + draw.randint(1, 40)]
        else:
            raw[at : at + 1] = bytes([draw.randrange(256)])
    return bytes(raw)


def storm(count: int, seed: int) -> None:
    """Send so many; the server answers all of them, and a good one afterwards."""
    draw = random.Random(seed)
    asked = [mutated(draw) for _ in range(count)]
    limits = {"body_timeout": 0.3, "keep_alive": 0.2}
    with serving(echo(**limits), **limits) as server:

        def one(raw: bytes) -> None:
            try:
                reply = server.say(raw)
            except ConnectionError:  # it was ended before all was sent
                reply = b""
            assert b"HTTP/1.1 5" not in reply and b"Traceback" not in reply, (raw, reply)
            first, _, rest = reply.partition(b"\r\n\r\n")
            if first.startswith(b"HTTP/1.1 4") and b"content-length: " in first and raw[:5] != b"HEAD ":
                length = int(first.split(b"content-length: ")[1].split(b"\r\n")[0])
                assert json.loads(rest[:length])["error"]["message"], (raw, reply)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(one, asked))
        assert server.ask("/v1/x", "POST", {"a": 1}).body == b'{"a": 1}'


def test_some_mutated_requests():
    storm(150, 1)


@pytest.mark.slow
def test_three_thousand_mutated_requests():
    storm(3000, 2)
