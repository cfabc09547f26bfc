"""How many requests may wait: the rest is refused at once, with the time after which to come again."""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from modelwright.engine.async_engine import AsyncEngine
from modelwright.engine.engine import Engine
from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError

_REMEMBERED = 32
SOONEST, LATEST = 1.0, 60.0
"""Seconds that ``retry-after`` says at least and at most."""


def most_requests(settings: ServerSettings, max_batch: int) -> int:
    """How many requests may run and wait in all, where `max_batch` run at once."""
    return max_batch + (4 * max_batch if settings.max_queue is None else settings.max_queue)


def on_a_thread(engine: Engine, settings: ServerSettings) -> AsyncEngine:
    """`engine` on a thread of its own, with the limits of a server."""
    most = most_requests(settings, engine.config.max_batch)
    return AsyncEngine(engine, max_requests=most, max_queued_tokens=settings.max_queue_tokens)


class Admission:
    """Counts the requests that are being made ready; the engine counts those that wait and run.

    Args:
        limit: how many there may be in all.
    """

    def __init__(self, engine: AsyncEngine, limit: int):
        self._engine, self._limit = engine, limit
        self._ended: deque[float] = deque(maxlen=_REMEMBERED)
        self.preparing = 0

    def check(self) -> None:
        """Raise an ApiError where there are too many: before a body is read, which may take its sender long."""
        if self.preparing + self._engine.waiting + self._engine.running >= self._limit:
            raise self.full("queue_full", f"there are {self._limit} requests already, which is as many as are taken")

    @contextmanager
    def preparation(self) -> Iterator[None]:
        """While a request, which is read, is being made ready, until the engine has it.

        Raises:
            ApiError: there are too many.
        """
        self.check()
        self.preparing += 1
        try:
            yield
        finally:
            self.preparing -= 1

    def ended(self) -> None:
        """A request has left."""
        self._ended.append(time.monotonic())

    def full(self, code: str, message: str) -> ApiError:
        """The refusal of a request that comes too early."""
        seconds = self._seconds()
        after = {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(1e3 * seconds))}
        return ApiError(429, code, message, headers=after)

    def _seconds(self) -> float:
        """When half of those who wait will be gone, at the rate of the last ones."""
        if len(self._ended) < 2:
            return SOONEST
        rate = (len(self._ended) - 1) / max(time.monotonic() - self._ended[0], 1e-3)
        return min(max(self._engine.waiting / 2 / rate, SOONEST), LATEST)
