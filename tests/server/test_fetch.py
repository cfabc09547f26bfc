"""Fetching pictures: from hosts on the list, at public addresses, in time, and no socket opened for anything else."""

import socket
import threading
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest

from modelwright.errors import ConfigError
from modelwright.server import fetch
from modelwright.server.addresses import may_call
from modelwright.server.fetch import Fetcher
from modelwright.server.picture_hosts import PictureHosts, PictureUrl
from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError

WHERE = "messages[0].content[0]"
PUBLIC, PRIVATE = "8.8.8.8", "10.0.0.7"
BODY = b"picture" * 100


def whole(body=BODY, status="200 OK", *headers):
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


@contextmanager
def serving(*pieces, pause=0.0, repeat=False):
    """A server on this machine that answers every connection with `pieces`; `.asked` is what it was asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asked = []

        def answer(connection):
            with connection, suppress(OSError):
                connection.settimeout(5)
                asked.append(connection.recv(65536).decode())
                while True:
                    for piece in pieces:
                        connection.sendall(piece)
                        time.sleep(pause)
                    if not repeat:
                        break

        def accept():
            with suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield SimpleNamespace(host=f"127.0.0.1:{listener.getsockname()[1]}", asked=asked)
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def called(monkeypatch):
    """Every address that a socket of `fetch` is connected to; public ones are led to ``.to`` on this machine."""
    record = SimpleNamespace(addresses=[], to=None)

    class Recording(socket.socket):
        def connect(self, address, /):
            record.addresses.append(address[0])
            if address[0] == PUBLIC:
                host, port = record.to.split(":")
                address = host, int(port)
            super().connect(address)

    monkeypatch.setattr(fetch.socket, "socket", Recording)
    return record


def resolving(*answers):
    """A resolver that gives the next of `answers` each time it is asked, each a list of addresses."""
    left = list(answers)

    def resolve(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in left.pop(0)]

    resolve.left = left
    return resolve


def get(url, *hosts, resolve=socket.getaddrinfo, private=True, seconds=5.0, most=10_000):
    settings = ServerSettings(picture_host=hosts, picture_private=private, max_picture_bytes=most)
    fetcher = Fetcher(settings, resolve)
    return fetcher.fetch(fetcher.check(url, WHERE), WHERE, seconds)


def refusal(*arguments, **options):
    with pytest.raises(ApiError) as caught:
        get(*arguments, **options)
    error = caught.value
    assert error.status == 400 and error.param == WHERE
    for told in ("0x", "127.0.0.1", "Errno", "Traceback", PRIVATE):
        assert told not in error.message
    return error


def test_a_picture_is_fetched_once_and_alone(called, monkeypatch):
    with serving(whole()) as server:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
        assert get(f"http://{server.host}/a b.png".replace(" ", "%20") + "?x=1#part", server.host) == BODY
    assert called.addresses == ["127.0.0.1"]
    (asked,) = server.asked
    assert asked.startswith(f"GET /a%20b.png?x=1 HTTP/1.1\r\nHost: {server.host}\r\n")
    assert "cookie" not in asked.lower() and "authorization" not in asked.lower()


def test_a_chunked_answer_and_one_that_ends_with_its_connection():
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\npic\r\n4\r\nture\r\n0\r\n\r\n"
    for answer, body in ((chunked, b"picture"), (b"HTTP/1.0 200 OK\r\n\r\n" + BODY, BODY)):
        with serving(answer) as server:
            assert get(f"http://{server.host}/", server.host) == body


def test_tls_is_asked_for_the_name_and_checks_it():
    fetcher = Fetcher(ServerSettings(picture_host=("example.org",), picture_private=True))
    assert fetcher._tls.check_hostname and fetcher._tls.verify_mode.name == "CERT_REQUIRED"
    names = []

    def wrap(connection, server_hostname):
        names.append(server_hostname)
        return connection

    with serving(whole()) as server:
        port = int(server.host.split(":")[1])
        fetcher._tls = SimpleNamespace(wrap_socket=wrap)
        fetcher._resolve = lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        assert fetcher.fetch(fetcher.check("https://example.org/cat.png", WHERE), WHERE) == BODY
    assert names == ["example.org"] and "Host: example.org\r\n" in server.asked[0]


def test_row_14_without_a_list_no_name_is_resolved(called):
    def resolve(*_, **__):
        raise AssertionError("a name was resolved")

    for url in ("http://example.org/cat.png", "https://127.0.0.1/", "http://[::1]/"):
        assert refusal(url, resolve=resolve).code == "picture_host_not_allowed"
    assert called.addresses == []


REFUSED_BY_THE_LIST = (
    *("http://example.com/", "http://example.org.example.com/", "http://sub.example.org/"),
    *("http://notexample.org/", "http://example.org./", "http://example.org:8080/", "https://example.org:22/"),
    *("http://example.org:0/", "http://example.org:65536/", "http://example.org:99999/"),
    *("http://user@example.org/", "http://user:word@example.org/", "http://example.org@example.com/"),
    *("http://example.com@example.org/", "http://example.org:80@example.com/"),
    *("http://example.com#@example.org/", "http://example.com?@example.org/"),
    *("http://example.com\\@example.org/", "http://example.org\\@example.com/", "http:\\\\example.org/"),
    *(
        "http:/example.org/",
        "http://example.org/\\@example.com/",
        "http:example.org",
        "(TAB)http://example.org/",
        "http:///example.org/",
    ),
    *("http://example.com\\.example.org/", "http://example.org(TAB)/", "http://exam(LF)ple.org/"),
    *("http://example.org/(CR)(LF)X:y", "http://ｅxample.org/", "http://example。org/", "http://exämple.org/"),
    *("http://example.org%2eexample.com/", "http://%65xample.org/", "http://2130706433/", "http://0x7f000001/"),
    *("http://0177.0.0.1/", "http://127.1/", "http://127.0.0.1/", "http://0/", "http://0.0.0.0/"),
    *("http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/"),
    *("http://[fe80::1%25eth0]/", "http://[::1/", "http://localhost/", "http://169.254.169.254/latest/"),
    *("http://metadata.google.internal/", "http://10.0.0.1/", "http://", "http://:80/"),
    *("http://example.org/a(BLANK)b", "https://[example.org]/", "http://example.org:8o/"),
    *("http://example.org:-80/", "http://example.org:+80/", "http://example.org:80:80/"),
)
CONTROLS = {"(TAB)": "\t", "(CR)": "\r", "(LF)": "\n", "(BLANK)": " "}

REFUSED_BY_THEIR_ADDRESS = (
    *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "0.0.0.0", "0"),
    *("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.8", "198.18.0.1"),
    *("224.0.0.1", "255.255.255.255", "240.0.0.1", "203.0.113.5", "[::1]", "[::]", "[::ffff:10.0.0.1]", "[fc00::1]"),
    *("[fe80::1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2001::1]", "[ff02::1]", "[::7f00:1]"),
)


@pytest.mark.parametrize("url", REFUSED_BY_THE_LIST)
def test_row_14_forms_of_urls_that_are_not_on_the_list(called, url):
    for name, character in CONTROLS.items():
        url = url.replace(name, character)
    assert refusal(url, "example.org", private=False).code == "picture_host_not_allowed"
    assert called.addresses == []


@pytest.mark.parametrize("host", REFUSED_BY_THEIR_ADDRESS)
def test_row_14_a_list_lifts_no_check_of_addresses(called, host):
    error = refusal(f"http://{host}/cat.png", host, private=False)
    assert error.code == "picture_host_not_allowed" or "not reached" in error.message  # no resolver knows the form
    assert called.addresses == []


def test_every_address_of_a_name_is_checked(called):
    resolve = resolving([PUBLIC, PRIVATE])
    assert refusal("http://example.org/", "example.org", resolve=resolve, private=False).code == (
        "picture_host_not_allowed"
    )
    assert called.addresses == []


def test_a_name_that_changes_is_resolved_once(called):
    with serving(whole()) as server:
        called.to = server.host
        resolve = resolving([PUBLIC], ["127.0.0.1"])
        assert get("http://example.org/", "example.org", resolve=resolve, private=False) == BODY
    assert called.addresses == [PUBLIC] and len(resolve.left) == 1


def test_row_15_a_redirect_to_a_host_that_is_not_on_the_list_is_not_followed(called):
    with serving(whole()) as target, serving(whole(b"", "302 Found", f"Location: http://{target.host}/")) as server:
        assert refusal(f"http://{server.host}/", server.host).code == "picture_host_not_allowed"
        assert target.asked == [] and called.addresses == ["127.0.0.1"]


@pytest.mark.parametrize("location", ["http://other.example.org/x", "//other.example.org/x", "/x", "?x"])
def test_row_15_a_redirect_to_a_name_with_a_private_address_is_not_followed(called, location):
    with serving(whole(b"", "307 Temporary Redirect", f"Location: {location}")) as server:
        called.to = server.host
        hosts, resolve = ("example.org", "other.example.org"), resolving([PUBLIC], ["127.0.0.1"])
        error = refusal("http://example.org/", *hosts, resolve=resolve, private=False)
    assert error.code == "picture_host_not_allowed" and called.addresses == [PUBLIC]


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "gopher://x", "http://user@127.0.0.1/", "\\\\127.0.0.1", "http://[", ""]
)
def test_a_redirect_to_what_is_no_url_is_not_followed(called, location):
    with serving(whole(b"", "301 Moved", f"Location: {location}")) as server:
        error = refusal(f"http://{server.host}/", server.host, seconds=3)
    assert error.code == "picture_host_not_allowed" or "more than 3 times" in error.message
    assert set(called.addresses) == {"127.0.0.1"}


def test_three_redirects_are_followed_and_no_fourth(called):
    with serving(whole(b"", "302 Found", "Location: /again")) as server:
        assert "redirected more than 3 times" in refusal(f"http://{server.host}/", server.host).message
    assert len(called.addresses) == 4


def test_a_redirect_does_not_leave_tls():
    url = PictureUrl.read("https://example.org/a")
    fetcher = Fetcher(ServerSettings(picture_host=("example.org",), picture_private=True))
    with serving(whole(b"", "302 Found", "Location: http://example.org/b")) as server:
        port = int(server.host.split(":")[1])
        fetcher._tls = SimpleNamespace(wrap_socket=lambda connection, server_hostname: connection)
        fetcher._resolve = lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        with pytest.raises(ApiError, match="not fetched from this host"):
            fetcher.fetch(url, WHERE)


@pytest.mark.parametrize(
    ("pieces", "options", "code", "says"),
    [
        ([b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 4096], {"repeat": True}, "picture_too_large", "more than the 10000 bytes"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n"], {}, "picture_too_large", "more than the 10000"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort"], {}, "invalid_value", "cut short"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFF\r\nab"], {}, "invalid_value", "no valid HTTP"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nab"], {}, "invalid_value", "no valid HTTP"),
        ([b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"], {}, "invalid_value", "encoding"),
        ([b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"], {}, "invalid_value", "status 404"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n"], {"repeat": True, "pause": 0.001}, "invalid_value", "within 0.5 s"),
        ([b"x" * 100_000], {}, "invalid_value", "no valid HTTP"),
        ([b""], {}, "invalid_value", "no valid HTTP"),
        ([b"H"], {"pause": 5.0}, "invalid_value", "within 0.5 s"),
        ([b"HTTP/1.1 200 OK\r\nX: ", *[b"x"] * 100], {"pause": 0.02}, "invalid_value", "within 0.5 s"),
        ([b"HTTP/1.1 200 OK\r\n\r\n", *[b"x"] * 100], {"pause": 0.02}, "invalid_value", "within 0.5 s"),
    ],
)
def test_row_16_an_answer_that_is_endless_slow_or_wrong_is_cut(pieces, options, code, says):
    with serving(*pieces, **options) as server:
        error = refusal(f"http://{server.host}/", server.host, seconds=0.5)
    assert error.code == code and says in error.message


def test_a_host_that_nobody_listens_at():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
    assert "not reached" in refusal(f"http://{host}/", host).message


def test_private_lifts_the_check_of_private_addresses_alone():
    for address in (
        "127.0.0.1",
        "10.1.2.3",
        "172.31.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "::1",
        "fd00::1",
        "::ffff:10.0.0.1",
    ):
        assert may_call(address, private=True) and not may_call(address)
    for address in ("169.254.169.254", "fe80::1", "224.0.0.1", "ff02::1", "0.0.0.0", "::", "2002:a00:1::", "nonsense"):
        assert not may_call(address, private=True)
    for address in (PUBLIC, "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"):
        assert may_call(address)


def test_ports_of_the_list():
    hosts = PictureHosts(("Example.org", "example.com:8080", "[::1]:81"))
    allowed = {
        *("http://EXAMPLE.org", "https://example.org", "http://example.org:443/x", "http://example.com:8080"),
        *("https://example.com/", "http://[::1]:81/?"),
    }
    refused = {"http://example.org:8080/", "http://example.com:81", "http://[::1]:82"}
    assert {url for url in allowed | refused if hosts.allow(PictureUrl.read(url))} == allowed
    for entry in (
        "http://example.org",
        "example.org/",
        "*.example.org",
        "a b",
        "",
        "example.org:0",
        "example.org:70000",
    ):
        with pytest.raises(ConfigError, match="picture_host must be"):
            PictureHosts((entry,))
