"""How a server ends: signals, those that still wait, and nobody left behind."""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from modelwright.server.guard import Guard
from modelwright.server.health import Condition, Health
from modelwright.server.settings import ServerSettings

PARTING = 5.0
"""Seconds for the last frames of requests that were aborted."""
_POLL = 0.02


class Drained(Protocol):
    """An engine, as far as ending it goes."""

    async def drain(self, timeout: float) -> None: ...


class Signals:
    """SIGTERM and SIGINT, counted, and SIGHUP; they are only heard in the main thread.

    Attributes:
        first, second: set when so many of the two that end a server have come.
        last: the one that came last.
    """

    def __init__(self, hang_up: Callable[[], None]):
        self.first, self.second = asyncio.Event(), asyncio.Event()
        self.last = 0
        self._loop = asyncio.get_running_loop()
        self._heard = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if threading.current_thread() is threading.main_thread():
            for number in self._heard[:2]:
                self._loop.add_signal_handler(number, self.come, number)
            self._loop.add_signal_handler(signal.SIGHUP, hang_up)

    def come(self, number: int) -> None:
        """What a signal does."""
        self.last = number
        (self.second if self.first.is_set() else self.first).set()

    async def unless_second(self, work: Awaitable[Any]) -> bool:
        """Await `work`, or a second signal: then False, and the work is cancelled."""
        task, second = asyncio.ensure_future(work), asyncio.ensure_future(self.second.wait())
        await asyncio.wait({task, second}, return_when=asyncio.FIRST_COMPLETED)
        second.cancel()
        if not task.done():
            task.cancel()
            return False
        task.result()
        return True


async def drain(settings: ServerSettings, health: Health, guard: Guard, engine: Drained) -> None:
    """Serve on for the delay, take nothing new, let what runs end in its time, and abort the rest."""
    health.state = Condition.DRAINING
    await asyncio.sleep(settings.drain_delay)
    health.state = Condition.CLOSING
    await _until_idle(guard, settings.shutdown_timeout)
    await engine.drain(0.0)
    await _until_idle(guard, PARTING)


async def _until_idle(guard: Guard, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while guard.running and loop.time() < end:
        await asyncio.sleep(_POLL)
