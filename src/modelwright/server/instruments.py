"""`Instruments`, counters, histograms and gauges of one registry, each with the prefix and the model's name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily

from modelwright.server.tallies import Count, Family, Spread, Tally

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)


class EngineView(Protocol):
    """What an engine shows at any moment without a step: requests that run and wait, and the numbers of its last."""

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def statistics(self) -> Any: ...


class Instruments:
    """Makes them. All have the label ``model_name``, as vLLM's do."""

    def __init__(self, prefix: str, model: str):
        self._registry = CollectorRegistry(auto_describe=False)
        self._prefix, self._model = prefix, model

    def counter(self, name: str, about: str) -> Count:
        """A counter; ``_total`` comes behind its name."""
        return self._family(name, about, Count).of()

    def counters(self, name: str, about: str, label: str, values: Iterable[str]) -> dict[str, Count]:
        """A counter for each value of a label, shown from the beginning."""
        family = self._family(name, about, Count, label)
        return {value: family.of(value) for value in values}

    def counter_of(self, name: str, about: str, label: str) -> Callable[[str], Count]:
        """A counter for each value of a label; whoever calls it keeps the values few."""
        return self._family(name, about, Count, label).of

    def seconds(self, name: str, about: str) -> Spread:
        """A histogram of times, from 1 ms on."""
        return self._family(name, about, partial(Spread, SECONDS)).of()

    def tokens(self, name: str, about: str) -> Spread:
        """A histogram of counts of tokens."""
        return self._family(name, about, partial(Spread, TOKENS)).of()

    def seconds_of(self, name: str, about: str, label: str, values: Iterable[str]) -> dict[str, Spread]:
        """A histogram of times for each value of a label."""
        family = self._family(name, about, partial(Spread, SECONDS), label)
        return {value: family.of(value) for value in values}

    def fact(self, name: str, about: str, labels: Mapping[str, object]) -> None:
        """A gauge that is 1 and says what it says by its labels."""
        texts = {"model_name": self._model, **{key: str(value) for key, value in labels.items()}}
        Gauge(self._prefix + name, about, tuple(texts), registry=self._registry).labels(**texts).set(1)

    def watch(self, engine: EngineView, stalled_for: Callable[[], float]) -> None:
        """Gauges that are read when somebody asks."""
        self._registry.register(_Gauges(self._prefix, self._model, engine, stalled_for))

    def page(self) -> tuple[bytes, str]:
        """All of it as Prometheus reads it, and the content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _family(self, name: str, about: str, make: Callable[[], Tally], label: str | None = None) -> Family[Tally]:
        family = Family(self._prefix + name, about, self._model, make, label)
        self._registry.register(family)
        return family


class _Gauges:
    """A collector of prometheus_client."""

    def __init__(self, prefix: str, model: str, engine: EngineView, stalled_for: Callable[[], float]):
        self._prefix, self._model, self._engine, self._stalled_for = prefix, model, engine, stalled_for

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield self._gauge("num_requests_running", "Requests that are computed.", self._engine.running)
        yield self._gauge("num_requests_waiting", "Requests that wait.", self._engine.waiting)
        yield self._gauge("kv_cache_usage_perc", "Pages of the cache in use, as a share of 1.", self._usage())
        yield self._gauge("last_step_age_seconds", "How long there was work and no step.", self._stalled_for())

    def _usage(self) -> float:
        statistics = self._engine.statistics
        if statistics is None:
            return 0.0
        step = statistics.step
        return step.pages_used / max(1, step.pages_used + step.pages_cached + step.pages_free)

    def _gauge(self, name: str, about: str, value: float) -> GaugeMetricFamily:
        made = GaugeMetricFamily(self._prefix + name, about, labels=("model_name",))
        made.add_metric((self._model,), value)
        return made
