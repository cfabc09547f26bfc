"""`Pace`, the rhythm of a stream: pings while nothing comes, progress while it waits, and frames that are joined."""

import asyncio
import time

from modelwright.server.settings import ServerSettings

PROGRESS_SECONDS = 0.25


class Pace:
    """Of one stream.

    Args:
        progress: frames tell how far the prompt is, before the first token.

    Attributes:
        beat: seconds without an update after which something is to be said; None for never.
    """

    def __init__(self, settings: ServerSettings, progress: bool):
        self._ping, self._interval = settings.ping_seconds, settings.stream_interval_ms / 1e3
        beats = [PROGRESS_SECONDS] * progress + [self._ping] * (self._ping > 0)
        self.beat = min(beats, default=None)
        self._last = time.monotonic()

    def ping_is_due(self) -> bool:
        """Whether nothing was said for so long that something must be, for the sake of those between."""
        now = time.monotonic()
        if self._ping <= 0 or now - self._last < 0.99 * self._ping:
            return False
        self._last = now
        return True

    async def sent(self) -> None:
        """A frame is out: wait until the next one may follow."""
        left = self._interval - (time.monotonic() - self._last)
        if left > 0:
            await asyncio.sleep(left)
        self._last = time.monotonic()
