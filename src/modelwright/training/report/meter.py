"""How fast a run goes: tokens, FLOPs and seconds of the steps since a line was last written."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

_REMEMBERED = 200
"""Steps whose times the percentiles and the time that is left are taken from."""


@dataclass(frozen=True)
class Speed:
    """Of the steps since the last line, waiting for data included; percentiles are of the last steps, in seconds."""

    seconds: float
    tokens_per_second: float
    flops_per_second: float | None
    data_wait: float
    p50: float
    p95: float


@dataclass
class Meter:
    """Adds up steps."""

    tokens: int = 0
    flops: int | None = 0
    seconds: float = 0.0
    waited: float = 0.0
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def add(self, tokens: int, flops: int | None, seconds: float, waited: float) -> None:
        """One step: its real tokens, its FLOPs where they are known, its time, and its wait for data before that."""
        self.tokens += tokens
        self.flops = None if flops is None or self.flops is None else self.flops + flops
        self.seconds += seconds + waited
        self.waited += waited
        self._times.append(seconds + waited)

    def take(self) -> Speed:
        """The speed since this was last called; the sums start anew."""
        seconds = max(self.seconds, 1e-9)
        p50, p95 = np.percentile(self._times, (50, 95)) if self._times else (0.0, 0.0)
        speed = Speed(
            seconds=self.seconds,
            tokens_per_second=self.tokens / seconds,
            flops_per_second=None if self.flops is None else self.flops / seconds,
            data_wait=self.waited / seconds,
            p50=float(p50),
            p95=float(p95),
        )
        self.tokens, self.flops, self.seconds, self.waited = 0, 0, 0.0, 0.0
        return speed

    def left(self, steps: int) -> float | None:
        """Seconds that so many steps will take, by the mean of the last ones without the slowest; None before any."""
        if not self._times:
            return None
        times = sorted(self._times)
        kept = times[: max(1, len(times) - len(times) // 10 - (len(times) > 1))]
        return steps * sum(kept) / len(kept)
