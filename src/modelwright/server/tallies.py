"""Counters and histograms that cost little: a server counts every frame, and prometheus_client's own take microseconds.

prometheus_client writes them, as it does all metrics.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from threading import Lock
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class Count:
    """A number that only grows; for any thread."""

    __slots__ = ("_lock", "value")

    def __init__(self) -> None:
        self.value, self._lock = 0.0, Lock()

    def inc(self, amount: float = 1) -> None:
        with self._lock:
            self.value += amount


class Spread:
    """How values spread over ranges; for any thread.

    Args:
        edges: the largest value of each range, in order; one more range is beyond them.
    """

    __slots__ = ("_counts", "_edges", "_lock", "_sum")

    def __init__(self, edges: Sequence[float]):
        self._edges, self._counts, self._sum, self._lock = edges, [0] * (len(edges) + 1), 0.0, Lock()

    def observe(self, value: float) -> None:
        with self._lock:
            self._counts[bisect_left(self._edges, value)] += 1
            self._sum += value

    def told(self) -> tuple[list[tuple[str, float]], float]:
        """For each edge how many values were not beyond it, and the sum of all."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        edges = [*map(floatToGoString, self._edges), "+Inf"]
        return list(zip(edges, map(float, accumulate(counts)), strict=True)), total


Tally = TypeVar("Tally", Count, Spread)


class Family(Generic[Tally]):
    """One name with a tally for each value of a label, or for none; a collector of prometheus_client.

    Args:
        make: a new tally.
        label: None where there is one tally alone.
    """

    def __init__(self, name: str, about: str, model: str, make: Callable[[], Tally], label: str | None = None):
        self._name, self._about, self._model, self._make, self._label = name, about, model, make, label
        self._tallies: dict[str, Tally] = {}
        self._lock = Lock()

    def of(self, value: str = "") -> Tally:
        """The tally of a value, which is shown from now on."""
        with self._lock:
            if value not in self._tallies:
                self._tallies[value] = self._make()
            return self._tallies[value]

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        labels = ["model_name", *([] if self._label is None else [self._label])]
        counters = CounterMetricFamily(self._name, self._about, labels=labels)
        histograms = HistogramMetricFamily(self._name, self._about, labels=labels)
        with self._lock:
            tallies = list(self._tallies.items())
        for value, tally in tallies:
            values = [self._model, value][: len(labels)]
            if isinstance(tally, Count):
                counters.add_metric(values, tally.value)
            else:
                histograms.add_metric(values, *tally.told())
        yield counters if self._make is Count else histograms
