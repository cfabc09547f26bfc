"""`AsyncEngine`, an engine on a thread of its own that serves asyncio tasks: streams, cancellation, back-pressure."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Self

from modelwright.configs.field_types import fits, shown
from modelwright.engine.counts import Counts
from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.engine.prepared import Prepared
from modelwright.engine.refusals import Draining, QueueFull, TimedOut
from modelwright.engine.results import EngineStatistics, Update
from modelwright.engine.streams import Stream
from modelwright.engine.worker import Worker
from modelwright.errors import RequestError

_CACHES = 4
"""How many times the tokens of the cache may wait, where nobody says."""


class AsyncEngine:
    """Runs `engine` on a thread, for the tasks of one event loop.

    Use it as ``async with AsyncEngine(engine) as serving``, or call `close` in the end. `stream` is all that a program
    needs. A server calls `prepare` in its worker threads and `submit` on its loop, which never waits.

    Args:
        engine: nobody else may use it meanwhile.
        max_requests: how many are served or wait at once.
        max_queued_tokens: how long the prompts of those that wait may be together; by default 4 times the cache. A
            prompt that waits alone may be longer.
        max_unread: bytes of updates that may wait in a stream for its reader.
    """

    def __init__(
        self,
        engine: Engine,
        max_requests: int = 256,
        max_queued_tokens: int | None = None,
        max_unread: int = 2**20,
    ):
        limits = {"max_requests": max_requests, "max_queued_tokens": max_queued_tokens, "max_unread": max_unread}
        for name, limit in limits.items():
            if limit is not None and limit < 1:
                raise RequestError(f"{name} must be at least 1, got {limit}")
        if engine.has_work:
            raise RequestError("an AsyncEngine needs an engine of its own, and this one is serving requests")
        self._engine, self._counts = engine, Counts()
        self._max_requests = max_requests
        self._max_queued_tokens = max_queued_tokens or _CACHES * engine.cache_tokens
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = asyncio.Lock()  # of whoever waits longest for room
        self._changed = asyncio.Event()  # whether any request has begun or ended since somebody looked
        self._draining = False
        self._numbers = count()
        self._worker = Worker(engine, self._counts, max_unread, self._note_change)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    @property
    def statistics(self) -> EngineStatistics | None:
        """Of the last step."""
        return self._engine.statistics

    def watch_steps(self, told: Callable[[EngineStatistics], None] | None) -> None:
        """Let `told` be called after each step, on the engine's thread: it must be quick, and raise nothing."""
        self._worker.on_step = told

    @property
    def waiting(self) -> int:
        """Requests whose prompt nobody has begun to read."""
        return self._counts.waiting

    @property
    def running(self) -> int:
        """Requests that were begun and have not ended."""
        return self._counts.running

    @property
    def queued_tokens(self) -> int:
        """Of the prompts of those that wait."""
        return self._counts.queued_tokens

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return self._counts.requests > 0

    @property
    def last_step(self) -> float:
        """When the last step ended, by ``time.monotonic``, or when there was work again after none."""
        return self._counts.last_step

    @property
    def longest_step(self) -> float:
        """The seconds of the longest step so far."""
        return self._counts.longest_step

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs; one that has ended serves nobody any more."""
        return self._worker.alive

    def prepare(self, prompt: Any, params: SamplingParams | None = None, *, salt: str = "") -> Prepared:
        """`Engine.prepare`: what takes time before a request can wait for its turn. In any thread.

        A short text takes less than a millisecond; all else is for threads other than the loop's.

        Raises:
            RequestError: the request cannot be served.
        """
        return self._engine.prepare(prompt, params, salt=salt)

    def submit(
        self,
        prepared: Prepared,
        *,
        priority: int = 0,
        timeout: float | None = None,
        queue_timeout: float | None = None,
        spent: float = 0.0,
        pause: float = 0.0,
    ) -> Stream:
        """Let a request wait for its turn, on the loop's thread; it never waits itself.

        Args:
            prepared: by `prepare`; each is submitted once.
            priority: lower goes first.
            timeout: seconds until the last output must have ended; else the stream raises `TimedOut`.
            queue_timeout: seconds until the prompt must be begun.
            spent: seconds of `timeout` that have gone by already.
            pause: seconds for which the reader may go without news while outputs go on: it is woken for the first one,
                for ends, and between them no more often than that. What comes meanwhile is joined.

        Raises:
            QueueFull: there is no room; the request may be submitted later.
            Closed: the engine takes nothing any more; `Draining` while it finishes what it has, `Died` by itself.
            RequestError: the engine serves another event loop, or the request was submitted before.
        """
        loop = self._own_loop()
        if not fits(priority, int):
            raise RequestError(f"a request's priority must be an int, got {shown(priority)}")
        if prepared.taken:
            raise RequestError("a prepared request can be submitted once, and this one was: prepare another one")
        full = self._full(prepared.prompt_tokens)
        if full is not None:
            raise full
        stream = Stream(f"stream-{next(self._numbers)}", prepared, loop, self._order_abort, pause)
        self._counts.came(prepared.prompt_tokens)
        if not self._worker.order(partial(self._worker.add, stream, priority, time.monotonic())):
            self._counts.ended(prepared.prompt_tokens, started=False)
            raise self._worker.closed()
        for seconds, gone, of_queue in ((timeout, spent, False), (queue_timeout, 0.0, True)):
            if seconds is not None:
                stream.set_timer(max(seconds - gone, 0.0), partial(_time_out, stream, seconds, of_queue))
        return stream

    async def stream(
        self, prompt: Any, params: SamplingParams | None = None, *, priority: int = 0
    ) -> AsyncIterator[Update]:
        """The updates of one request as they come, until all its outputs have ended; waits until there is room for it.

        Leaving the loop early, or cancelling the task, aborts the request.

        Raises:
            RequestError: the request cannot be served, the engine is closed, or it serves another event loop.
            RequestFailed: the request could not be finished, for instance because the model raised what is the error's
                cause; others go on.
        """
        self._own_loop()
        prepared = await asyncio.to_thread(self.prepare, prompt, params)
        stream = await self._submit_when_there_is_room(prepared, priority)
        try:
            async for update in stream:
                yield update
        finally:
            stream.abort()

    async def drain(self, timeout: float | None = None) -> None:
        """Take nothing new, and return once all requests have ended; those that have not by then are aborted.

        Their readers get the text so far, with ``abort`` as the reason.

        Args:
            timeout: seconds; None for as long as it takes.
        """
        self._own_loop()
        self._draining = True
        self._changed.set()  # who waits for room is told
        try:
            await asyncio.wait_for(self._until_idle(), timeout)
        except TimeoutError:
            self._worker.order(self._worker.abort_all)
            await self._until_idle()

    def forget_prefixes(self) -> None:
        """`Engine.forget_prefixes`, before the next step and before any request that is made later.

        Raises:
            Closed: the engine is closed.
        """
        if not self._worker.order(self._engine.forget_prefixes):
            raise self._worker.closed()

    def close(self) -> None:
        """End the thread after its step; requests that have not ended raise `Closed` in the tasks that read them."""
        self._worker.close()

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise RequestError("an AsyncEngine serves one event loop, and was used in another one before")
        self._loop = loop
        self._worker.serve(loop)
        return loop

    def _full(self, tokens: int) -> RequestError | None:
        """Why a request with so long a prompt is not taken now."""
        if not self._worker.alive:
            return self._worker.closed()
        if self._draining:
            return Draining()
        counts = self._counts
        if counts.requests >= self._max_requests:
            return QueueFull("requests", self._max_requests, counts.requests + 1)
        queued = counts.queued_tokens
        if queued and queued + tokens > self._max_queued_tokens:
            return QueueFull("tokens", self._max_queued_tokens, queued + tokens)
        return None

    async def _submit_when_there_is_room(self, prepared: Prepared, priority: int) -> Stream:
        async with self._turn:
            while isinstance(self._full(prepared.prompt_tokens), QueueFull):
                self._changed.clear()
                await self._changed.wait()
            return self.submit(prepared, priority=priority)

    async def _until_idle(self) -> None:
        while self.has_work and self.alive:
            self._changed.clear()
            await self._changed.wait()

    def _order_abort(self, stream: Stream) -> None:
        self._worker.order(partial(self._worker.abort, stream))

    def _note_change(self) -> None:
        self._changed.set()


def _time_out(stream: Stream, seconds: float, of_queue: bool) -> None:
    if not (of_queue and stream.started):
        stream.give_up(TimedOut(seconds, not stream.started))
