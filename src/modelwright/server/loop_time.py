"""`LoopTime`, the part of the event loop's time that may go to work which a thread would take longer to wake for."""

import time
from collections.abc import Callable
from typing import TypeVar

SHARE = 0.2
"""Of the loop's time, in the long run."""
MOST = 5e-3
"""Seconds that may be taken in one go, after a pause."""
Result = TypeVar("Result")


class LoopTime:
    """Keeps account of it. Work that takes longer than there was time for is paid back before there is any again.

    Args:
        clock: seconds; another one for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._left, self._then = clock, MOST, clock()

    def left(self) -> bool:
        """Whether there is some now."""
        now = self._clock()
        self._left, self._then = min(MOST, self._left + SHARE * (now - self._then)), now
        return self._left > 0

    def run(self, work: Callable[[], Result]) -> Result:
        """What `work` gives, done here and now."""
        start = self._clock()
        try:
            return work()
        finally:
            self._left -= self._clock() - start
