"""Metrics, read by Prometheus' own parser: names and types are vLLM's behind the prefix, and labels are few."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelwright.engine.results import EngineStatistics
from modelwright.engine.step import StepStatistics
from modelwright.server.metrics import Metrics, Times
from modelwright.server.settings import ServerSettings
from tests.server.echo import echo
from tests.server.live import FakeEngine, serving

GAUGES = "num_requests_running num_requests_waiting kv_cache_usage_perc lora_requests_info cache_config_info"
COUNTERS = "prompt_tokens generation_tokens prefix_cache_queries prefix_cache_hits num_preemptions request_success"
HISTOGRAMS = (
    "time_to_first_token_seconds inter_token_latency_seconds request_time_per_output_token_seconds "
    "e2e_request_latency_seconds request_queue_time_seconds request_prefill_time_seconds request_decode_time_seconds "
    "request_prompt_tokens request_generation_tokens iteration_tokens"
)
OURS = {
    "counter": "requests_refused requests_aborted ignored_fields pictures stream_frames",
    "histogram": "picture_seconds guide_compile_seconds event_loop_lag_seconds step_seconds",
    "gauge": "last_step_age_seconds",
}


def families(metrics: Metrics) -> dict:
    return {family.name: family for family in text_string_to_metric_families(metrics.page()[0].decode())}


def value(metrics: Metrics, sample: str, **labels: str) -> float:
    found = [
        each.value
        for family in families(metrics).values()
        for each in family.samples
        if each.name == f"modelwright:{sample}" and labels.items() <= each.labels.items()
    ]
    assert len(found) == 1, (sample, found)
    return found[0]


@pytest.fixture
def metrics():
    made = Metrics(ServerSettings(), "tiny")
    made.watch(FakeEngine(running=3, waiting=7), {"block_size": 16, "num_gpu_blocks": 100}, lambda: 1.5)
    return made


@pytest.mark.parametrize("prefix", ["modelwright:", "vllm:", "x_"])
def test_names_and_types(prefix):
    made = Metrics(ServerSettings(metrics_prefix=prefix), "tiny")
    made.watch(FakeEngine(), {"block_size": 16}, lambda: 0.0)
    made.refused("queue_full")
    found = families(made)
    wanted = {"gauge": GAUGES, "counter": COUNTERS, "histogram": HISTOGRAMS}
    for kind in wanted:
        for name in f"{wanted[kind]} {OURS[kind]}".split():
            family = found[prefix + name]
            assert family.type == kind and family.documentation, name
            assert all(sample.labels["model_name"] == "tiny" for sample in family.samples)
    assert all(name.startswith(prefix) for name in found)


def test_times_are_told_from_a_millisecond_on(metrics):
    for name in HISTOGRAMS.split():
        edges = [s.labels["le"] for s in families(metrics)[f"modelwright:{name}"].samples if s.name.endswith("_bucket")]
        assert edges[0] == ("0.001" if name.endswith("seconds") else "1.0") and edges[-1] == "+Inf"


def test_an_answer_is_counted_where_it_belongs(metrics):
    metrics.request_started(100, cached_tokens=64)
    metrics.first_token(0.2)
    metrics.token(0.01)
    metrics.finished("stop", 3, Times(queue=0.1, prefill=0.1, decode=0.04, total=0.24))
    metrics.aborted("decode", completion_tokens=2)
    metrics.stepped(EngineStatistics(StepStatistics(1, 0, 1, 5, 0, 5, 0.0, 12), 0.01, pictures_kept=1))
    metrics.ignored("user")
    metrics.ignored("a made up name")
    with metrics.picture_stage("decode"):
        pass
    assert value(metrics, "prompt_tokens_total") == 100 and value(metrics, "generation_tokens_total") == 5
    assert value(metrics, "prefix_cache_queries_total") == 100 and value(metrics, "prefix_cache_hits_total") == 64
    assert value(metrics, "request_success_total", finished_reason="stop") == 1
    assert value(metrics, "requests_aborted_total", where="decode") == 1
    assert value(metrics, "request_time_per_output_token_seconds_sum") == pytest.approx(0.02)
    assert value(metrics, "iteration_tokens_sum") == 12 and value(metrics, "num_preemptions_total") == 1
    assert value(metrics, "ignored_fields_total", field="user") == 1
    assert value(metrics, "ignored_fields_total", field="other") == 1
    assert value(metrics, "pictures_total", kept="yes") == value(metrics, "picture_seconds_count", stage="decode") == 1


def test_gauges_are_the_engines_at_that_moment(metrics):
    assert value(metrics, "num_requests_running") == 3 and value(metrics, "num_requests_waiting") == 7
    assert value(metrics, "last_step_age_seconds") == 1.5 and value(metrics, "kv_cache_usage_perc") == 0
    assert value(metrics, "cache_config_info", block_size="16", num_gpu_blocks="100") == 1


def test_labels_stay_few_whatever_clients_send():
    with serving(echo()) as live:
        for number in range(30):
            live.ask(f"/v1/made-up-{number}", headers={"host": f"evil-{number}.example"})
        page = live.ask("/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=")
        assert "made-up" not in page.body.decode() and "evil" not in page.body.decode()
        assert value(live.metrics, "requests_refused_total", code="forbidden_host") == 30
        assert live.ask("/metrics", "POST", {}).status == 405


def test_metrics_at_a_port_of_their_own_are_not_at_the_servers():
    with serving(echo(), metrics_port=1) as live:
        assert live.ask("/metrics").body == b""  # the application's, which has no such route
