"""`AsyncEngine`, an engine on a thread of its own that serves asyncio tasks: streams, cancellation, back-pressure."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any, Self

from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.engine.results import EngineStatistics, Update
from modelwright.errors import RequestError


@dataclass(eq=False)
class _Stream:
    """Where the updates of a request go: a queue in the loop of the task that reads them."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Update | BaseException] = field(default_factory=asyncio.Queue)

    def put(self, item: Update | BaseException) -> None:
        """Called on the engine's thread; a loop that is closed has nobody left to read."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)


class AsyncEngine:
    """Runs `engine` on a thread; use it in one event loop, as ``async with AsyncEngine(engine) as serving``.

    Args:
        engine: nobody else may use it meanwhile.
        max_requests: how many are served or wait at once; `stream` waits while there are as many.
    """

    def __init__(self, engine: Engine, max_requests: int = 256):
        if max_requests < 1:
            raise RequestError(f"max_requests must be at least 1, got {max_requests}")
        self._engine = engine
        self._room = asyncio.Semaphore(max_requests)
        self._orders: deque[Callable[[], None]] = deque()  # what the thread is to do between steps
        self._awake = threading.Condition()
        self._streams: dict[str, _Stream] = {}
        self._numbers = count()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="modelwright-engine", daemon=True)
        self._thread.start()

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

    async def stream(
        self, prompt: Any, params: SamplingParams | None = None, *, priority: int = 0
    ) -> AsyncIterator[Update]:
        """The updates of one request as they come, until all its outputs have ended.

        Leaving the loop early, or cancelling the task, aborts the request.

        Raises:
            RequestError: the request cannot be served, or the engine is closed.
        """
        params, id_ = params or SamplingParams(), f"stream-{next(self._numbers)}"
        async with self._room:
            stream, left = _Stream(asyncio.get_running_loop()), params.n
            self._order(lambda: self._add(id_, stream, prompt, params, priority))
            try:
                while left:
                    item = await stream.queue.get()
                    if isinstance(item, BaseException):
                        raise item
                    left -= item.completion is not None
                    yield item
            finally:
                if left and not self._closed:
                    self._order(lambda: self._abort(id_))

    def close(self) -> None:
        """End the thread; requests that have not ended raise in the tasks that read them."""
        with self._awake:
            self._closed = True
            self._awake.notify()
        self._thread.join()

    def _order(self, order: Callable[[], None]) -> None:
        with self._awake:
            if self._closed:
                raise RequestError("the engine is closed")
            self._orders.append(order)
            self._awake.notify()

    def _run(self) -> None:
        while True:
            with self._awake:
                self._awake.wait_for(lambda: self._closed or self._orders or self._engine.has_work)
                orders, closed = list(self._orders), self._closed
                self._orders.clear()
            for order in orders:
                order()
            if closed:
                self._fail(RequestError("the engine is closed"))
                return
            try:
                self._hand_out(self._engine.step())
            except Exception as error:  # of the model: those who wait must hear of it, and the next may be served
                self._fail(error)

    def _add(self, id_: str, stream: _Stream, prompt: Any, params: SamplingParams, priority: int) -> None:
        try:
            self._engine.add_request(prompt, params, id=id_, priority=priority)
            self._streams[id_] = stream
        except Exception as error:  # refused: whoever asked is told
            stream.put(error)

    def _abort(self, id_: str) -> None:
        self._engine.abort(id_)
        self._streams.pop(id_, None)

    def _hand_out(self, updates: list[Update]) -> None:
        for update in updates:
            self._streams[update.request].put(update)
        for id_ in {update.request for update in updates if not self._engine.serves(update.request)}:
            del self._streams[id_]

    def _fail(self, error: Exception) -> None:
        for id_, stream in list(self._streams.items()):
            stream.put(error)
            self._abort(id_)
