"""What every answer carries, and what becomes of faults."""

import json
import re

import pytest

from tests.server.echo import echo
from tests.server.live import serving


@pytest.fixture(scope="module")
def live():
    with serving(echo(), log_format="json") as server:
        yield server


@pytest.mark.parametrize("id_", ["a", "A-z_0.9", "x" * 64])
def test_a_harmless_request_id_is_echoed(live, id_):
    assert live.ask("/v1/x", headers={"x-request-id": id_}).headers["x-request-id"] == id_
    assert json.loads(live.lines[-1])["request_id"] == id_


@pytest.mark.parametrize("id_", ["", "x" * 65, "a b", "a\tb", "é", "<b>", "a;b"])
def test_any_other_is_replaced(live, id_):
    made = live.ask("/v1/x", headers={"x-request-id": id_.encode("utf-8").decode("latin-1")}).headers["x-request-id"]
    assert re.fullmatch(r"req_[0-9a-f]{32}", made)


def test_errors_have_the_headers_too(live):
    for path, status in (("/fail", 500), ("/health", 405)):
        answer = live.ask(path, "POST", {})
        assert answer.status == status and {"x-request-id", "openai-processing-ms"} <= set(answer.headers)


def test_a_fault_of_ours_is_500_without_its_reason_which_the_log_has(live, caplog):
    answer = live.ask("/fail", "POST", {})
    assert (answer.status, answer.code) == (500, "internal_error")
    assert b"secret-of-the-house" not in answer.body and "secret-of-the-house" in caplog.text
    assert json.loads(live.lines[-1])["code"] == "internal_error"


def test_before_there_is_a_model_all_but_probes_and_metrics_are_503(live):
    with serving(None) as loading:
        answer = loading.ask("/v1/models")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "loading", "5")
        assert loading.ask("/livez").status == 200 and loading.ask("/metrics").status == 200
        assert loading.ask("/health").code == loading.ask("/readyz").code == "loading"


def test_what_a_proxy_takes_off_is_no_part_of_a_route():
    with serving(echo(), root_path="/api", api_key=("key",)) as live:
        assert live.ask("/health").status == 200  # uvicorn puts it in front
        assert live.ask("/v1/x").status == 401


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_log_lines_hold_what_clients_wrote_on_one_line(log_format):
    with serving(echo(), log_format=log_format) as live:
        live.ask("/v1/%0Aforged%20line%1b[31m%7f%C2%85%E2%80%A8?secret=1")
        (line,) = live.lines
        assert len(line.splitlines()) == 1 and line.isascii() and line.isprintable()
        assert "secret" not in line
        if log_format == "json":
            record = json.loads(line)
            assert record["route"].startswith("/v1/\nforged line") and record["status"] == 200
