"""Bodies within their limits, over real sockets: what is too large, too slow, packed or of another type is refused."""

import gzip
import json
import time

import pytest

from tests.server.echo import echo
from tests.server.live import Live, one_reply, serving

HEAD = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def live():
    limits = {"max_body": 1000, "body_timeout": 0.4, "keep_alive": 0.4}
    with serving(echo(**limits), **limits) as server:
        yield server


def code_of(reply: bytes) -> tuple[int, str]:
    """Status and code of the last answer among bytes from a socket."""
    head, _, body = reply[reply.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def alive(live: Live) -> None:
    assert live.ask("/v1/x", "POST", {"a": 1}).body == b'{"a": 1}'


def test_a_body_at_the_limit_is_taken_and_one_above_is_not(live):
    assert live.ask("/v1/x", "POST", b"x" * 1000, {"content-type": "application/json"}).status == 200
    answer = live.ask("/v1/x", "POST", b"x" * 1001, {"content-type": "application/json"})
    assert (answer.status, answer.code) == (413, "body_too_large")
    assert "1000" in answer.json["error"]["message"] and "1001" in answer.json["error"]["message"]


def test_row_16_five_gigabytes_are_refused_by_their_length(live):
    assert code_of(live.say(HEAD + b"Content-Length: 5000000000\r\n\r\nabc")) == (413, "body_too_large")
    alive(live)


def test_row_16_a_body_without_end_is_cut_at_the_limit(live):
    with live.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            try:
                connection.sendall(b"64\r\n" + b"x" * 100 + b"\r\n")
            except OSError:
                break
            time.sleep(0.005)
        assert code_of(one_reply(connection)) == (413, "body_too_large")
    alive(live)


def test_row_16_a_body_that_drips_is_cut_at_the_time_limit(live):
    start = time.perf_counter()
    with live.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 500\r\n\r\n")
        for _ in range(8):
            connection.sendall(b"x")
            time.sleep(0.05)
        assert code_of(one_reply(connection)) == (408, "body_timeout")
    assert time.perf_counter() - start > 0.3
    alive(live)


def test_a_client_that_asks_first_sends_no_body_that_is_refused(live):
    with live.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 5000\r\nExpect: 100-continue\r\n\r\n")
        assert code_of(one_reply(connection)) == (413, "body_too_large")
    with live.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"{}")
        assert one_reply(connection).endswith(b"{}")


@pytest.mark.parametrize(
    "type_", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", ""]
)
def test_a_body_of_another_type_is_refused_with_the_flag_of_curl(live, type_):
    answer = live.ask("/v1/x", "POST", b"{}", {} if type_ is None else {"content-type": type_})
    assert (answer.status, answer.code) == (415, "unsupported_media_type")
    assert "-H 'content-type: application/json'" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "type_", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_json_in_utf8_is_taken(live, type_):
    assert live.ask("/v1/x", "POST", b"{}", {"content-type": type_}).status == 200


def test_row_10_packed_bodies_and_other_charsets_are_refused(live):
    json_ = {"content-type": "application/json"}
    assert live.ask("/v1/x", "POST", gzip.compress(b"{}"), json_ | {"content-encoding": "gzip"}).status == 415
    assert live.ask("/v1/x", "POST", b"{}", json_ | {"content-encoding": "identity"}).status == 200
    assert live.ask("/v1/x", "POST", b"{}", {"content-type": "application/json; charset=utf-16"}).status == 415


def test_a_broken_chunk_is_an_error_with_a_body(live):
    reply = live.say(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nZZ\r\n")
    assert code_of(reply) == (400, "invalid_http")
    alive(live)
