"""Counters and histograms of our own, beside prometheus_client's: the same page for the same numbers."""

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from modelwright.server import run
from modelwright.server.instruments import SECONDS, Instruments
from modelwright.server.tallies import Count, Spread

SEEN = st.lists(st.one_of(st.sampled_from(SECONDS), st.floats(0, 1000), st.just(0.0)), max_size=30)


def page(registry: Any) -> list[str]:
    """Its lines without those that say when something was made."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.dictionaries(st.sampled_from(["stop", "a b", 'a "quoted" one\n']), SEEN), SEEN)
def test_the_page_is_prometheus_clients_own(by_label: dict[str, list[float]], seen: list[float]):
    theirs, ours = CollectorRegistry(auto_describe=False), Instruments("x:", "tiny")
    plain = Histogram("x:took", "How long.", ("model_name",), buckets=SECONDS, registry=theirs).labels("tiny")
    counter = Counter("x:took_in_all", "All.", ("model_name",), registry=theirs).labels("tiny")
    labelled = Histogram("x:stages", "Each.", ("model_name", "stage"), buckets=SECONDS, registry=theirs)
    counters = Counter("x:kinds", "Kinds.", ("model_name", "kind"), registry=theirs)
    took, in_all = ours.seconds("took", "How long."), ours.counter("took_in_all", "All.")
    stages, kind = ours.seconds_of("stages", "Each.", "stage", by_label), ours.counter_of("kinds", "Kinds.", "kind")
    for value in seen:
        for each in (plain, took):
            each.observe(value)
        for each in (counter, in_all):
            each.inc(value)
    for name, values in by_label.items():
        child = labelled.labels("tiny", name)
        for value in values:
            child.observe(value)
            stages[name].observe(value)
            counters.labels("tiny", name).inc()
            kind(name).inc()
    assert page(ours._registry) == page(theirs)


def test_nothing_is_lost_between_threads():
    count, spread = Count(), Spread((1, 2))

    def work(_: int) -> None:
        for _ in range(2000):
            count.inc(2)
            spread.observe(1.5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert count.value == 32_000
    assert spread.told() == ([("1.0", 0.0), ("2.0", 16_000.0), ("+Inf", 16_000.0)], 24_000.0)


def test_the_collector_passes_over_what_was_loaded():
    before, loaded = gc.get_freeze_count(), [[] for _ in range(1000)]
    try:
        run._spare_the_collector()
        assert gc.get_freeze_count() >= before + len(loaded)
        assert not any(each is loaded for each in gc.get_objects())
    finally:
        gc.unfreeze()
