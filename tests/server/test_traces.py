"""Spans of requests: their names and attributes, by a tracer that notes what it is told."""

from dataclasses import dataclass, field
from typing import Any

from modelwright.server import traces
from modelwright.server.access_log import Record
from modelwright.server.traces import ENDPOINT, Traces, open_traces

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Span:
    name: str
    context: Any
    start_time: int
    kind: Any = None
    attributes: dict[str, Any] = field(default_factory=dict)
    ended: int = 0

    def end(self, when: int) -> None:
        self.ended = when


class Tracer:
    def __init__(self) -> None:
        self.spans: list[Span] = []

    def start_span(self, name: str, **how: Any) -> Span:
        self.spans.append(Span(name, **how))
        return self.spans[-1]


def test_a_request_is_a_span_with_the_conventions_names_and_its_parts_are_children():
    tracer = Tracer()
    record = Record("req_1", "127.0.0.1", "POST", "/v1/chat/completions", time=100.0, key="alice", model="tiny")
    record.status, record.prompt_tokens, record.cached_tokens, record.completion_tokens = 200, 11, 8, 5
    record.queue_ms, record.ttft_ms, record.total_ms, record.finish_reason = 10.0, 30.0, 90.0, "stop"
    record.content = {"prompt": "secret"}
    headers = [(b"traceparent", PARENT), (b"authorization", b"Bearer secret")]
    Traces(tracer, lambda sent: ("parent", sent), lambda span: ("child of", span.name), "server").add(record, headers)
    span, *children = tracer.spans
    assert span.kind == "server"
    assert (span.name, span.context) == ("chat tiny", ("parent", {"traceparent": PARENT.decode()}))
    assert (span.start_time, span.ended) == (100_000_000_000, 100_090_000_000)
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "modelwright",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.response.id": "req_1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 8,
        "gen_ai.latency.time_in_queue": 0.01,
        "gen_ai.latency.time_to_first_token": 0.03,
        "gen_ai.latency.time_in_model_prefill": 0.02,
        "gen_ai.latency.time_in_model_decode": 0.06,
        "gen_ai.latency.e2e": 0.09,
        "http.response.status_code": 200,
    }
    assert [(child.name, child.context) for child in children] == [
        (name, ("child of", "chat tiny")) for name in ("queue", "prefill", "decode")
    ]
    assert [(child.start_time, child.ended) for child in children] == [
        (100_000_000_000, 100_010_000_000),
        (100_010_000_000, 100_030_000_000),
        (100_030_000_000, 100_090_000_000),
    ]


def test_words_stand_in_a_span_only_where_that_is_wished():
    record = Record("req_1", "127.0.0.1", "POST", "/v1/chat/completions", model="tiny")
    record.content = {"asked": {"messages": []}, "answered": ["Hi."]}
    found = []
    for content in (False, True):
        tracer = Tracer()
        Traces(tracer, lambda sent: None, lambda span: None, content=content).add(record, [])
        found.append({name: value for name, value in tracer.spans[0].attributes.items() if "messages" in name})
    assert found == [{}, {"gen_ai.input.messages": '{"messages": []}', "gen_ai.output.messages": '["Hi."]'}]


def test_what_no_engine_answers_is_no_span_and_a_refusal_says_its_code():
    tracer = Tracer()
    made = Traces(tracer, lambda sent: None, lambda span: None)
    made.add(Record("a", None, "GET", "/v1/models"), [])
    assert not tracer.spans
    made.add(Record("b", None, "POST", "/v1/completions", status=429, code="queue_full", total_ms=1.0), [])
    assert tracer.spans[0].name == "text_completion" and tracer.spans[0].attributes["error.type"] == "queue_full"


def test_nothing_is_traced_without_an_endpoint_or_without_opentelemetry(monkeypatch):
    assert open_traces({}) is None
    monkeypatch.setattr(traces, "find_spec", lambda name: None)
    assert open_traces({ENDPOINT: "http://127.0.0.1:4318"}) is None
