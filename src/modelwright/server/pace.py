"""`Pace`, the rhythm of a stream: frames that are joined, and what is said while there are none."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

from modelwright.server.exchange import Exchange
from modelwright.server.frames import PING

PROGRESS_SECONDS = 0.25


class Pace:
    """Of one stream: ``async with Pace(...) as pace``, and then `write`.

    Beside the frames it says that it is alive, after `ping_seconds` without one, for the sake of those between; and
    how far the prompt is, until the first frame.

    Args:
        progress: gives the frame that tells this; None where it is not asked for.
    """

    def __init__(self, exchange: Exchange, progress: Callable[[], bytes] | None = None):
        settings = exchange.settings
        self._exchange, self._progress = exchange, progress
        self._ping, self._interval = settings.ping_seconds, settings.stream_interval_ms / 1e3
        self._last, self._begun = time.monotonic(), False
        self._ticks: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        beats = [PROGRESS_SECONDS] * (self._progress is not None) + [self._ping] * (self._ping > 0)
        if beats:
            self._ticks = asyncio.ensure_future(self._tick(min(beats)))
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._ticks is not None:
            self._ticks.cancel()
            with suppress(asyncio.CancelledError, Exception):  # who left is found out by the frames too
                await self._ticks

    def write(self, frames: bytes) -> Awaitable[None]:
        """Send frames, and wait until the next ones may follow."""
        self._begun = True
        if self._interval > 0:
            return self._write_in_time(frames)
        self._last = time.monotonic()
        return self._exchange.write(frames)

    async def _write_in_time(self, frames: bytes) -> None:
        await self._exchange.write(frames)
        await asyncio.sleep(max(0.0, self._interval - (time.monotonic() - self._last)))
        self._last = time.monotonic()

    async def _tick(self, beat: float) -> None:
        while True:
            await asyncio.sleep(beat)
            if self._progress is not None and not self._begun:
                await self._exchange.write(self._progress())
            elif self._ping > 0 and time.monotonic() - self._last >= 0.99 * self._ping:
                await self._exchange.write(PING)
            else:
                continue
            self._last = time.monotonic()
