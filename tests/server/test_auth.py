"""Keys: who may ask, for what, and that no key is ever told to anybody."""

import hashlib
import hmac
import json

import pytest

from modelwright.errors import ConfigError
from modelwright.server import auth
from modelwright.server.auth import ANYBODY, Keys
from modelwright.server.run import check_open
from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError
from tests.server.echo import echo
from tests.server.live import serving

SECRET = "sk-very-secret-0123456789"
LINES = f"""
# who may do what
alice:infer,metrics,admin:{SECRET}
bob:infer,max_concurrent=1,closed=ignore_eos+priority:sha256={hashlib.sha256(b"bobs-key").hexdigest()}
watch:metrics:scrape:me
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(LINES)
    return path


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + key.encode())]


def test_keys_come_from_flags_a_variable_and_a_file(file):
    keys = Keys(ServerSettings(api_key=("one-key",), api_key_file=str(file)), {auth.VARIABLE: "two-key, three-key"})
    assert len(keys) == 6
    names = [
        keys.find(bearer(key)).name for key in ("one-key", "two-key", "three-key", SECRET, "bobs-key", "scrape:me")
    ]
    assert names == ["flag-1", "variable-1", "variable-2", "alice", "bob", "watch"]
    bob = keys.find([(b"x-api-key", b"bobs-key")])
    assert (bob.max_concurrent, bob.closed_fields) == (1, {"ignore_eos", "priority"})
    assert bob.scopes == {"infer"} and keys.find(bearer("one-key")).scopes == {"infer", "metrics"}


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer(""),
        bearer("wrong"),
        bearer(SECRET[:-1]),
        bearer(SECRET + "x"),
        bearer(SECRET.upper()),
        [(b"authorization", b"Basic " + SECRET.encode())],
        [(b"authorization", SECRET.encode())],
        [(b"cookie", b"key=" + SECRET.encode())],
        [(b"x-api-key", "ké".encode())],
        bearer(hashlib.sha256(b"bobs-key").hexdigest()),
    ],
)
def test_row_11_a_wrong_or_missing_key_is_401(file, headers):
    with pytest.raises(ApiError) as caught:
        Keys(ServerSettings(api_key_file=str(file)), {}).find(headers)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert caught.value.headers == {"www-authenticate": "Bearer"}
    assert SECRET not in caught.value.body().decode()


def test_row_11_all_keys_are_compared_in_constant_time_whichever_it_is(file, monkeypatch):
    """Digests, with hmac's comparison, and never fewer than there are keys."""
    keys, compared = Keys(ServerSettings(api_key_file=str(file)), {}), []
    genuine = hmac.compare_digest

    def compare(one: bytes, two: bytes) -> bool:
        compared.append(len(one) == len(two) == 32)
        return genuine(one, two)

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    keys.find(bearer(SECRET))
    assert compared == [True] * 3


def test_without_keys_everybody_may_ask_and_administrate_nothing():
    assert Keys(ServerSettings(), {}).find([]) is ANYBODY and "admin" not in ANYBODY.scopes


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("alice", "line 1 of the api-key-file must be name:scopes:key"),
        ("al ice:infer:k", "name:scopes:key"),
        ("alice:infer:", "a key must be 1 to 512"),
        ("alice:root:k", "scopes must be of infer, metrics, admin"),
        ("alice::k", "scopes must be of"),
        ("alice:infer,speed=1:k", "max_concurrent=N"),
        ("alice:infer,max_concurrent=0:k", "max_concurrent=N"),
        ("alice:infer,closed=n:k", "closed= of ignore_eos, prompt_logprobs, priority"),
        ("alice:infer:sha256=abc", "64 hexadecimal digits"),
        ("\nalice:infer:k\nbob:infer:k", "the key called bob is given twice"),
        ("alice:infer:k\nalice:infer:l", "two keys are called alice"),
        ("# nobody", "holds no key"),
    ],
)
def test_a_line_that_is_none_is_told_by_its_number_and_never_shown(tmp_path, lines, message):
    path = tmp_path / "keys.txt"
    path.write_text(lines.replace(":k", f":{SECRET}"))
    with pytest.raises(ConfigError, match=message) as caught:
        Keys(ServerSettings(api_key_file=str(path)), {})
    assert SECRET not in str(caught.value)


def test_a_file_read_again_replaces_its_keys_or_changes_nothing(file):
    keys = Keys(ServerSettings(api_key_file=str(file)), {})
    file.write_text("carol:infer:new-key")
    keys.reload()
    assert keys.find(bearer("new-key")).name == "carol"
    with pytest.raises(ApiError):
        keys.find(bearer(SECRET))
    file.write_text("broken")
    with pytest.raises(ConfigError):
        keys.reload()
    assert keys.find(bearer("new-key")).name == "carol"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_address_that_others_reach_needs_keys_or_a_word(host):
    def check(environ=None, **settings):
        chosen = ServerSettings(host=host, **settings)
        check_open(chosen, Keys(chosen, environ or {}))

    with pytest.raises(ConfigError, match="needs keys"):
        check()
    check(no_auth=True)
    check(api_key=("k",))
    check({auth.VARIABLE: "k"})
    check(uds="/tmp/x")
    with pytest.raises(ConfigError, match="together"):
        check(no_auth=True, api_key=("k",))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.0.1"])
def test_loopback_needs_none(host):
    check_open(ServerSettings(host=host), Keys(ServerSettings(host=host), {}))


PATHS = ["/", "/v1/models", "/v1/chat/completions", "/metrics", "/version", "/openapi.json", "/nothing", "/health/"]
PATHS += ["/healthz", "/health/../v1/models", "//health", "/livez/x", "/%68ealth/v1", "/readyz;x", "/invocations"]


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "DELETE", "PUT"])
def test_row_11_every_path_but_the_probes_needs_a_key(file, method):
    with serving(echo(), api_key_file=str(file)) as live:
        for path in PATHS:
            answer = live.ask(path, method)
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer", path
        for path in ("/health", "/livez", "/readyz"):
            assert live.ask(path, method).status == (200 if method in ("GET", "HEAD") else 405)
        assert live.ask("/v1/x", method, headers={"x-api-key": SECRET}).status != 401


def test_scopes_cover_their_routes(file):
    with serving(echo(), api_key_file=str(file)) as live:
        watch, bob = {"authorization": "Bearer scrape:me"}, {"x-api-key": "bobs-key"}
        assert live.ask("/metrics", headers=watch).status == 200
        assert live.ask("/v1/models", headers=watch).code == "forbidden_scope"
        assert live.ask("/metrics", headers=bob).code == "forbidden_scope"
        assert live.ask("/v1/models", headers=bob).body == b"bob"


def test_requests_of_a_key_at_once_are_limited(file):
    import threading

    with serving(echo(), api_key_file=str(file)) as live:
        bob, first = {"x-api-key": "bobs-key"}, []
        thread = threading.Thread(target=lambda: first.append(live.ask("/slow", "POST", {}, bob)))
        thread.start()
        while not live.guard.running:
            pass
        refused = live.ask("/v1/x", "POST", {}, bob)
        assert (refused.status, refused.code, refused.headers["retry-after"]) == (429, "key_concurrency", "1")
        assert live.ask("/v1/x", "POST", {}, {"x-api-key": SECRET}).status == 200
        thread.join()
        assert first[0].status == 200 and live.ask("/v1/x", "POST", {}, bob).status == 200


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_row_11_a_key_is_in_no_log_no_metric_and_no_error(file, log_format, caplog):
    with serving(echo(), api_key_file=str(file), api_key=("typed-secret-1",), log_format=log_format) as live:
        for key in (SECRET, "typed-secret-1", "wrong-secret-1"):
            for path in ("/v1/x", "/fail", "/metrics", "/v1/completions"):
                for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
                    answer = live.ask(path, "POST", {}, headers)
                    assert key not in answer.body.decode() + json.dumps(answer.headers)
        told = "\n".join(live.lines) + live.ask("/metrics", headers={"x-api-key": SECRET}).body.decode() + caplog.text
        assert "alice" in told and not any(key in told for key in (SECRET, "typed-secret-1", "wrong-secret-1"))
        assert "alice" not in live.metrics.page()[0].decode()
        assert SECRET not in repr(live.guard.__dict__)
