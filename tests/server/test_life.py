"""How a server begins and ends, in processes of their own: nobody is cut off who need not be, nobody waits for ever."""

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import time
import warnings

import pytest

from tests.server.processes import fake


def code(answer: tuple[int, bytes]) -> tuple[int, str]:
    return answer[0], json.loads(answer[1])["error"]["code"]


def test_the_port_is_open_while_it_loads_and_says_so():
    with fake("loading=2") as server:
        assert code(server.ask("/v1/models")) == (503, "loading")
        assert server.ask("/livez")[0] == 200 and code(server.ask("/health")) == (503, "loading")
        server.wait_for("ready at http://127.0.0.1:")
        assert server.ask("/health")[0] == 200 and server.ask("/v1/x") == (200, b"/v1/x")


def test_row_31_a_signal_lets_what_runs_end_and_refuses_what_comes():
    with fake() as server:
        server.wait_for("ready")
        thread, found = server.later("/v1/slow")
        time.sleep(0.1)
        server.send(signal.SIGTERM)
        server.wait_for("no more requests")
        time.sleep(0.1)
        assert code(server.ask("/v1/x")) == (503, "shutting_down")
        assert server.ask("/livez")[0] == 200 and server.ask("/readyz")[0] == 503 and server.ask("/health")[0] == 200
        thread.join()
        assert found == [(200, b"/v1/slow")]
        assert server.ended() == 0
        assert [line.strip() for line in server.said if "closed" in line or "ended" in line] == ["closed", "ended True"]


def test_row_31_what_does_not_end_in_its_time_is_aborted():
    with fake("shutdown_timeout=0.3") as server:
        server.wait_for("ready")
        thread, found = server.later("/v1/wait")
        time.sleep(0.2)
        start = time.monotonic()
        server.send(signal.SIGTERM)
        thread.join()
        assert found == [(200, b"/v1/wait")] and time.monotonic() - start > 0.29
        assert server.ended() == 0


@pytest.mark.slow
def test_the_delay_still_serves_and_is_not_ready():
    with fake("drain_delay=1.0") as server:
        server.wait_for("ready")
        server.send(signal.SIGTERM)
        server.wait_for("no more requests")
        time.sleep(0.1)
        assert server.ask("/readyz")[0] == 503 and server.ask("/health")[0] == 200
        assert server.ask("/v1/x") == (200, b"/v1/x")
        assert server.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_row_31_a_second_signal_ends_it_at_once(number):
    with fake() as server:
        server.wait_for("ready")
        thread, found = server.later("/v1/wait")
        time.sleep(0.2)
        server.send(number)
        server.wait_for("no more requests")
        server.send(number)
        assert server.ended() == 128 + number
        thread.join()
        assert not found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_loads_ends_it(number, tmp_path):
    path = tmp_path / "socket"
    with fake("loading=600", f"uds='{path}'") as server:
        server.wait_for("listening at")
        server.send(number)
        assert server.ended() == 0 and not path.exists()


def test_row_30_a_dead_engine_is_told_and_then_the_process_ends_with_70():
    with fake() as server:
        server.wait_for("ready")
        server.ask("/v1/die")
        assert code(server.ask("/health")) == (503, "engine_stalled") and server.ask("/livez")[0] == 503
        assert code(server.ask("/v1/x")) == (503, "engine_stalled")
        assert server.ended() == 70
        assert "ended False\n" in server.said


def test_what_cannot_be_loaded_ends_it_with_a_sentence():
    with fake("broken=yes") as server:
        assert server.ended() == 2
        assert server.said[-1] == "refused: dtype must be another one\n"


def test_keys_are_read_again_at_a_signal(tmp_path):
    file = tmp_path / "keys"
    file.write_text("a:infer:old-key")
    with fake(f"api_key_file='{file}'") as server:
        server.wait_for("ready")
        assert server.ask("/v1/x", x_api_key="old-key")[0] == 200 and server.ask("/v1/x", x_api_key="new-key")[0] == 401
        file.write_text("a:infer:new-key")
        server.send(signal.SIGHUP)
        server.wait_for("1 keys are known now")
        assert server.ask("/v1/x", x_api_key="old-key")[0] == 401 and server.ask("/v1/x", x_api_key="new-key")[0] == 200
        file.write_text("broken-secret-line")
        server.send(signal.SIGHUP)
        server.wait_for("the keys stay as they were")
        assert server.ask("/v1/x", x_api_key="new-key")[0] == 200
        assert not any(word in line for line in server.said for word in ("old-key", "new-key", "broken-secret-line"))


def test_an_open_address_without_keys_is_refused_at_start():
    with fake("host='0.0.0.0'") as server:
        assert server.ended() == 2 and "needs keys" in server.said[-1]
    with fake("host='0.0.0.0'", MODELWRIGHT_API_KEYS="k") as server:
        server.wait_for("ready")
        assert server.ask("/v1/x")[0] == 401 and server.ask("/v1/x", authorization="Bearer k")[0] == 200


def test_a_taken_port_is_a_sentence():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with fake(f"port={port}") as server:
            assert server.ended() == 2 and f"port ({port}) is taken at 127.0.0.1" in server.said[-1]


def test_a_unix_socket_is_its_owners_and_is_gone_in_the_end(tmp_path):
    path = tmp_path / "socket"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with fake(f"uds='{path}'") as server:
        server.wait_for("ready")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        with fake(f"uds='{path}'") as second:
            assert second.ended() == 2 and "is another server's" in second.said[-1]
        server.send(signal.SIGTERM)
        assert server.ended() == 0 and not path.exists()


def test_metrics_at_a_port_of_their_own():
    with fake("metrics_port=0") as server:
        server.wait_for("ready")
        port = int(server.wait_for("metrics at").rpartition(":")[2].partition("/")[0])
        assert server.ask("/metrics") == (200, b"/metrics")  # the application's
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            got = b""
            while part := client.recv(65536):
                got += part
        assert b"modelwright:num_requests_running" in got
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 404")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A certificate for localhost and its key."""
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    where = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*made, *where, *names], check=True, capture_output=True)
    return folder


def talk(port: int, context: ssl.SSLContext) -> bytes:
    """What is answered; nothing where the server does not talk so."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return client.recv(65536)
    except (ssl.SSLError, ConnectionError):
        return b""


def test_tls_is_1_2_or_newer_and_may_ask_for_certificates(certificates):
    cert, key = certificates / "cert.pem", certificates / "key.pem"
    known = ssl.create_default_context(cafile=str(cert))
    with fake(f"tls_cert='{cert}'", f"tls_key='{key}'") as server:
        server.wait_for("ready at https://127.0.0.1:")
        assert talk(server.port, known).startswith(b"HTTP/1.1 200")
        old = ssl.create_default_context(cafile=str(cert))
        old.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):
            old.minimum_version, old.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_1
        assert talk(server.port, old) == b""
        assert talk(server.port, known).startswith(b"HTTP/1.1 200")
    with fake(f"tls_cert='{cert}'", f"tls_key='{key}'", f"tls_client_ca='{cert}'") as server:
        server.wait_for("ready")
        assert talk(server.port, known) == b""
        known.load_cert_chain(cert, key)
        assert talk(server.port, known).startswith(b"HTTP/1.1 200")
    with fake(f"tls_cert='{key}'", f"tls_key='{cert}'") as server:
        assert server.ended() == 2 and "cannot be used together" in server.said[-1]
