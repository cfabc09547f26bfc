"""`Bounded`, work of a foreign parser on a thread of its own, which is left behind where it takes too long."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

MOST_LEFT = 4
"""Threads that may be left behind at once; each holds a core until its work has ended."""
_PATIENCE = 20.0
"""How many times its budget work may last by the clock, where the machine has no time for it."""
_LOOKS = 8
"""How often the processor time of work beyond its budget is looked at, in a budget's length."""


class TookTooLong(Exception):
    """Work was beyond its budget, and goes on where nobody waits for it."""


class TooManyLeft(Exception):
    """As many threads as may be are left behind, so that none was begun."""


@dataclass(eq=False)
class _Work:
    """What a thread is to do, and what came of it."""

    call: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    started: float | None = None  # processor time of the thread before it
    result: Any = None
    error: BaseException | None = None


class Bounded:
    """Runs calls one after the other on a thread, each within a budget; to be used by one thread at a time.

    Calls must let go of the interpreter's lock while they work, as llguidance does where it builds a grammar and a
    mask: nobody could stop waiting for one that does not. What is left behind counts for all, in ``Bounded.left``.

    Args:
        name: of the thread.
        limited: begin nothing while `MOST_LEFT` threads are left behind.
    """

    left = 0
    _counting = threading.Lock()

    def __init__(self, name: str, *, limited: bool = False):
        self._name, self._limited = name, limited
        self._queue: SimpleQueue[_Work | None] | None = None
        self._thread: threading.Thread | None = None

    def run(self, call: Callable[[], Any], seconds: float) -> Any:
        """What `call` returns, or raises, within so many seconds of processor time.

        Raises:
            TookTooLong: it needed more, and was left behind.
            TooManyLeft: it was not begun.
        """
        thread, queue = self._ready()
        work = _Work(call)
        queue.put(work)
        if not self._ends(work, thread, seconds):
            self._leave(work, queue)
            raise TookTooLong
        if work.error is not None:
            raise work.error
        return work.result

    def close(self) -> None:
        """End the thread, once it has nothing to do."""
        if self._queue is not None:
            self._queue.put(None)
        self._queue = self._thread = None

    def _ready(self) -> tuple[threading.Thread, "SimpleQueue[_Work | None]"]:
        if self._thread is None or self._queue is None:
            if self._limited and Bounded.left >= MOST_LEFT:
                raise TooManyLeft
            self._queue = SimpleQueue()
            self._thread = threading.Thread(target=_serve, args=(self._queue,), name=self._name, daemon=True)
            self._thread.start()
        return self._thread, self._queue

    def _ends(self, work: _Work, thread: threading.Thread, seconds: float) -> bool:
        if work.done.wait(seconds):
            return True
        latest = time.monotonic() + seconds * (_PATIENCE - 1)
        while time.monotonic() < latest and _spent(work, thread) < seconds:
            if work.done.wait(seconds / _LOOKS):
                return True
        return work.done.is_set()

    def _leave(self, work: _Work, queue: "SimpleQueue[_Work | None]") -> None:
        """Count the thread until its work has ended, and let it end then."""
        with Bounded._counting:
            Bounded.left += 1
        self._queue = self._thread = None
        queue.put(_Work(_come_back))
        queue.put(None)


def _come_back() -> None:
    with Bounded._counting:
        Bounded.left -= 1


def _serve(queue: "SimpleQueue[_Work | None]") -> None:
    while (work := queue.get()) is not None:
        work.started = time.thread_time()
        try:
            work.result = work.call()
        except BaseException as error:  # whatever it is, whoever waits must hear of it
            work.error = error
        work.done.set()
        del work  # a thread that waits holds on to nothing


def _spent(work: _Work, thread: threading.Thread) -> float:
    """Processor seconds that a thread has spent on its work; where the system does not tell, more than any budget."""
    if work.started is None or thread.ident is None:
        return 0.0
    if not hasattr(time, "pthread_getcpuclockid"):
        return float("inf")
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident)) - work.started
