"""Which names the server answers to, and which pages may call it."""

import pytest

from modelwright.errors import ConfigError
from modelwright.server.origins import Origins
from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError
from tests.server.echo import echo
from tests.server.live import serving

PAGE = "https://page.example"


def host_of(settings: ServerSettings, host: str) -> str:
    try:
        Origins(settings).check_host([(b"host", host.encode("latin-1"))], "1.1")
    except ApiError as error:
        return error.code
    return "fine"


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:80", "LOCALHOST.", "127.9.9.9"]
)
def test_a_loopback_server_answers_to_loopback(host):
    assert host_of(ServerSettings(), host) == "fine"


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.0.7", "x"]
)
def test_and_to_no_other_name(host):
    assert host_of(ServerSettings(), host) == "forbidden_host"


@pytest.mark.parametrize(
    "host", ["", "a b", "localhost:http", "user@localhost", "localhost/", "[::1", "localhost:999999"]
)
def test_what_is_no_host_is_refused(host):
    assert host_of(ServerSettings(), host) == "invalid_value"


def test_a_server_for_all_addresses_answers_to_each_and_to_allowed_names():
    open_ = ServerSettings(host="0.0.0.0", allowed_host=("api.example.org", "*.svc.example"))
    assert [host_of(open_, host) for host in ("10.1.2.3:8000", "[fd00::1]", "API.example.org", "a.svc.example")] == (
        ["fine"] * 4
    )
    assert [host_of(open_, host) for host in ("svc.example", "evilsvc.example", "x.api.example.org")] == (
        ["forbidden_host"] * 3
    )
    one = ServerSettings(host="192.168.0.7")
    assert host_of(one, "192.168.0.7:8000") == "fine" and host_of(one, "192.168.0.8") == "forbidden_host"


def test_a_foreign_host_gets_nowhere():
    with serving(echo()) as live:
        for path in ("/v1/x", "/health", "/metrics"):
            answer = live.ask(path, headers={"host": "evil.example"})
            assert (answer.status, answer.code) == (403, "forbidden_host")
        assert live.say(b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("origin", [PAGE, "null", "http://localhost:1", "https://127.0.0.1.evil.example", "file://"])
def test_row_12_a_foreign_page_does_nothing_and_reads_nothing(origin):
    with serving(echo()) as live:
        answer = live.ask("/v1/x", "POST", {}, {"origin": origin})
        assert (answer.status, answer.code) == (403, "forbidden_origin")
        read = live.ask("/v1/x", headers={"origin": origin})
        assert read.status == 200 and not any(name.startswith("access-control") for name in read.headers)
        asked = live.ask("/v1/x", "OPTIONS", headers={"origin": origin, "access-control-request-method": "POST"})
        assert not any(name.startswith("access-control") for name in asked.headers)


def test_the_servers_own_page_may():
    with serving(echo()) as live:
        for scheme in ("http", "https"):
            own = f"{scheme}://localhost:{live.port}"
            assert live.ask("/v1/x", "POST", {}, {"origin": own, "host": f"localhost:{live.port}"}).status == 200
        assert live.ask("/v1/x", "POST", {}, {"origin": "http://localhost", "host": "localhost:8000"}).status == 403


def test_row_12_an_allowed_origin_is_echoed_exactly():
    with serving(echo(), cors_origin=(PAGE, "http://localhost:3000"), api_key=("key",)) as live:
        key = {"x-api-key": "key"}
        answer = live.ask("/v1/x", "POST", {}, {"origin": PAGE} | key)
        assert answer.status == 200 and answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["vary"] == "origin" and "x-request-id" in answer.headers["access-control-expose-headers"]
        assert live.ask("/v1/x", "POST", {}, {"origin": PAGE}).headers["access-control-allow-origin"] == PAGE  # a 401
        for other in (PAGE + ".evil.example", "http://page.example", PAGE + ":8443", "https://PAGE.example"):
            refused = live.ask("/v1/x", "POST", {}, {"origin": other} | key)
            assert refused.status == 403 and "access-control-allow-origin" not in refused.headers


def test_a_preflight_of_an_allowed_page_needs_no_key_and_of_another_gets_none():
    with serving(echo(), cors_origin=(PAGE,), api_key=("key",)) as live:
        asks = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,x-stainless-os",
        }
        answer = live.ask("/v1/x", "OPTIONS", headers={"origin": PAGE} | asks)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert live.ask("/v1/x", "OPTIONS", headers={"origin": "https://other.example"} | asks).status == 401
        assert live.ask("/v1/x", "OPTIONS", headers={"origin": PAGE}).status == 401


def test_row_12_everybody_is_allowed_without_credentials_alone():
    with serving(echo(), cors_origin=("*",)) as live:
        answer = live.ask("/v1/x", "POST", {}, {"origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    ["page.example", PAGE + "/", PAGE + "/x", "ftp://page.example", "https://", "HTTPS://page.example", "https://*.x"],
)
def test_an_origin_that_is_none_is_refused_at_start(origin):
    with pytest.raises(ConfigError, match="cors_origin must be like"):
        Origins(ServerSettings(cors_origin=(origin,)))
