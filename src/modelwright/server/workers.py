"""Threads of which few work at once, and a wait for one of them that ends."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from modelwright.server.wire.errors import ApiError

Result = TypeVar("Result")


class Workers:
    """A place where work that would stop the event loop is done.

    A thread cannot be ended from outside, so work that is given up (its time is over, or its request is gone) keeps its
    place until it returns: there are never more than ``count`` pieces of work at once.

    Args:
        count: how many work at once.
        wait: seconds that work waits for a place.
        what: what they do, for errors and the names of threads.
    """

    def __init__(self, count: int, wait: float, what: str):
        self._wait, self._what = wait, what
        self._free = asyncio.Semaphore(count)
        self._threads = ThreadPoolExecutor(count, f"modelwright {what}")

    async def run(self, work: Callable[[], Result], limit: float, late: ApiError) -> Result:
        """What `work` returns, within `limit` seconds of its beginning.

        Raises:
            ApiError: 429 where no place became free in time, `late` where the work took too long, and what it raises.
        """
        try:
            async with asyncio.timeout(self._wait):
                await self._free.acquire()
        except TimeoutError:
            message = f"the server is busy {self._what}: no place became free within {self._wait:g} s, try again later"
            raise ApiError(429, "queue_full", message, headers={"retry-after": "1", "retry-after-ms": "1000"}) from None
        loop = asyncio.get_running_loop()

        def leave(_: Future[Result]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits
                loop.call_soon_threadsafe(self._free.release)

        begun = self._threads.submit(work)
        begun.add_done_callback(leave)
        try:
            async with asyncio.timeout(limit):
                return await asyncio.wrap_future(begun)
        except TimeoutError:
            raise late from None

    def close(self) -> None:
        """Take no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)
