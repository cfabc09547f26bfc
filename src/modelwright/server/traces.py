"""`Traces`, spans of OpenTelemetry for requests, where it is installed and an endpoint is set; all names stand here."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from modelwright.server.access_log import Record

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}
"""Paths that are traced, and what the conventions call that."""
PROVIDER = "modelwright"
_FIELDS = {
    "gen_ai.request.model": "model",
    "gen_ai.response.model": "model",
    "gen_ai.response.id": "request_id",
    "gen_ai.usage.input_tokens": "prompt_tokens",
    "gen_ai.usage.output_tokens": "completion_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cached_tokens",
    "http.response.status_code": "status",
    "error.type": "code",
}
"""Attributes of a span, and the fields of a `Record` that they are."""
_LATENCIES = {
    "gen_ai.latency.time_in_queue": "queue_ms",
    "gen_ai.latency.time_to_first_token": "ttft_ms",
    "gen_ai.latency.e2e": "total_ms",
}
"""The same of times, which spans have in seconds."""
_CONTENT = {"gen_ai.input.messages": "asked", "gen_ai.output.messages": "answered"}
"""The same of words, in JSON, where spans may hold any."""


class Traces:
    """Makes a span of each request that has ended, with children for its parts.

    Args:
        tracer: of OpenTelemetry.
        extract: from headers to the context that ``traceparent`` names.
        in_context: from a span to the context of its children.
        kind: what OpenTelemetry calls the span of a server.
        content: spans hold what was asked and answered.
    """

    def __init__(
        self,
        tracer: Any,
        extract: Callable[[Mapping[str, str]], Any],
        in_context: Callable[[Any], Any],
        kind: Any = None,
        content: bool = False,
    ):
        self._tracer, self._extract, self._in_context, self._kind = tracer, extract, in_context, kind
        self._content = content

    def add(self, record: Record, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Tell of a request, if it is one that an engine answers."""
        operation = OPERATIONS.get(record.route)
        if operation is None or record.method != "POST":
            return
        sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name.startswith(b"trace")}
        values = {name: getattr(record, each) for name, each in _FIELDS.items()}
        values |= {name: _seconds(getattr(record, each)) for name, each in _LATENCIES.items()}
        values |= {"gen_ai.operation.name": operation, "gen_ai.provider.name": PROVIDER}
        if record.finish_reason is not None:
            values["gen_ai.response.finish_reasons"] = (record.finish_reason,)
        if self._content and record.content is not None:
            values |= {name: json.dumps(record.content.get(each)) for name, each in _CONTENT.items()}
        for name in {"prefill", "decode"} & record.stages.keys():
            begin, end = record.stages[name]
            values[f"gen_ai.latency.time_in_model_{name}"] = _seconds(end - begin)
        span = self._tracer.start_span(
            f"{operation} {record.model or ''}".rstrip(),
            context=self._extract(sent),
            kind=self._kind,
            attributes={name: value for name, value in values.items() if value is not None},
            start_time=_nanoseconds(record, 0.0),
        )
        for name, (begin, end) in record.stages.items():
            child = self._tracer.start_span(
                name, context=self._in_context(span), start_time=_nanoseconds(record, begin)
            )
            child.end(_nanoseconds(record, end))
        span.end(_nanoseconds(record, record.total_ms or 0.0))


def open_traces(environ: Mapping[str, str], content: bool = False) -> Traces | None:
    """Traces that go to the endpoint of the environment; None where there is none, or no OpenTelemetry.

    Args:
        content: spans hold what was asked and answered.
    """
    if not environ.get(ENDPOINT) or find_spec("opentelemetry") is None:
        return None
    from opentelemetry import propagate, trace  # pyright: ignore[reportMissingImports]

    _send(trace)
    tracer = trace.get_tracer(PROVIDER)
    return Traces(tracer, propagate.extract, trace.set_span_in_context, trace.SpanKind.SERVER, content)


def _send(trace: Any) -> None:
    """Let spans be sent, where what sends them is installed and nobody else has set it up."""
    try:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter  # pyright: ignore[reportMissingImports]
        from opentelemetry.sdk import resources  # pyright: ignore[reportMissingImports]
        from opentelemetry.sdk import trace as sdk  # pyright: ignore[reportMissingImports]
        from opentelemetry.sdk.trace import export  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    if isinstance(trace.get_tracer_provider(), sdk.TracerProvider):
        return
    provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": PROVIDER}))
    provider.add_span_processor(export.BatchSpanProcessor(trace_exporter.OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def _nanoseconds(record: Record, milliseconds: float) -> int:
    return int(record.time * 1e9 + milliseconds * 1e6)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
