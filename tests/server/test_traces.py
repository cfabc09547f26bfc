"""Spans of requests: their names and attributes, by a tracer that notes what it is told."""

import asyncio
import base64
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from modelwright.server import traces
from modelwright.server.access_log import Record
from modelwright.server.traces import ENDPOINT, Traces, open_traces
from tests.server.models import llama, nano
from tests.server.serving import CHAT, COMPLETIONS, running

PICTURE = Path(__file__).parents[2] / "examples" / "pictures" / "shapes.png"
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
    record.stages = {"pictures": (0.5, 2.0), "queue": (2.0, 10.0), "prefill": (10.0, 30.0), "decode": (30.0, 90.0)}
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
        (name, ("child of", "chat tiny")) for name in ("pictures", "queue", "prefill", "decode")
    ]
    assert [(child.start_time, child.ended) for child in children] == [
        (100_000_500_000, 100_002_000_000),
        (100_002_000_000, 100_010_000_000),
        (100_010_000_000, 100_030_000_000),
        (100_030_000_000, 100_090_000_000),
    ]


SHOWN = [
    {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()},
    },
    {"type": "text", "text": "?"},
]


@pytest.mark.parametrize(
    ("load", "path", "body", "names"),
    [
        (nano, CHAT, {"messages": [{"role": "user", "content": SHOWN}]}, "pictures prepare queue prefill decode"),
        (llama, CHAT, {"messages": [{"role": "user", "content": "hello"}]}, "prepare queue prefill decode"),
        (llama, COMPLETIONS, {"prompt": "hello"}, "prepare queue prefill decode"),
    ],
    ids=["picture", "chat", "completion"],
)
def test_the_parts_of_a_served_request_follow_one_another_within_it(load, path, body, names):
    tracer = Tracer()
    told = Traces(tracer, lambda sent: None, lambda span: span.name)

    async def main():
        async with running(load(), name="tiny", traces=told) as server:
            return await server.client.post(path, {"model": "tiny", "max_tokens": 4, "ignore_eos": True} | body)

    assert asyncio.run(main()).status == 200
    span, *parts = tracer.spans
    assert [part.name for part in parts] == names.split()
    assert span.start_time <= parts[0].start_time and parts[-1].ended <= span.ended
    assert all(part.start_time < part.ended for part in parts)
    assert all(before.ended == after.start_time for before, after in pairwise(parts))


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
