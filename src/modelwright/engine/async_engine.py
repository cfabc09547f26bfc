"""`AsyncEngine`, an engine on a thread of its own that serves asyncio tasks: streams, cancellation, back-pressure."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any, Self

from modelwright.configs.field_types import shown
from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.engine.results import EngineStatistics, Update
from modelwright.errors import RequestError, RequestFailed

_CLOSED = "the engine is closed"


@dataclass(eq=False)
class _Stream:
    """Where the updates of a request go: a queue in the loop of the task that reads them."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Update | BaseException] = field(default_factory=asyncio.Queue)

    def put(self, item: Update | BaseException) -> None:
        """Called on the engine's thread; a loop that is closed has nobody left to read."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)


class AsyncEngine:
    """Runs `engine` on a thread, for the tasks of one event loop.

    Use it as ``async with AsyncEngine(engine) as serving``, or call `close` in the end.

    Args:
        engine: nobody else may use it meanwhile.
        max_requests: how many are served or wait at once; `stream` waits while there are as many.
    """

    def __init__(self, engine: Engine, max_requests: int = 256):
        if max_requests < 1:
            raise RequestError(f"max_requests must be at least 1, got {max_requests}")
        if engine.has_work:
            raise RequestError("an AsyncEngine needs an engine of its own, and this one is serving requests")
        self._engine = engine
        self._room = asyncio.Semaphore(max_requests)
        self._loop: asyncio.AbstractEventLoop | None = None
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
            RequestError: the request cannot be served, the engine is closed, or it serves another event loop.
            RequestFailed: the request could not be finished; others go on.
            RuntimeError: the model failed, for the reason that is its cause; later requests may be served.
        """
        params, id_ = params or SamplingParams(), f"stream-{next(self._numbers)}"
        if not isinstance(params, SamplingParams):
            raise RequestError(f"params must be SamplingParams, got {shown(params)}")
        loop = self._own_loop()
        async with self._room:
            stream, left = _Stream(loop), params.n
            if not self._order(lambda: self._add(id_, stream, prompt, params, priority)):
                raise RequestError(_CLOSED)
            try:
                while left:
                    item = await stream.queue.get()
                    if isinstance(item, BaseException):
                        raise item
                    left -= item.completion is not None
                    if item.completion is not None and item.completion.error is not None:
                        raise RequestFailed(item.completion.error)
                    yield item
            finally:
                if left:
                    self._order(lambda: self._abort(id_))

    def forget_prefixes(self) -> None:
        """`Engine.forget_prefixes`, before the next step and before any request that is made later.

        Raises:
            RequestError: the engine is closed.
        """
        if not self._order(self._engine.forget_prefixes):
            raise RequestError(_CLOSED)

    def close(self) -> None:
        """End the thread after its step; requests that have not ended raise in the tasks that read them."""
        with self._awake:
            self._closed = True
            self._awake.notify()
        self._thread.join()

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise RequestError("an AsyncEngine serves one event loop, and was used in another one before")
        self._loop = loop
        return loop

    def _order(self, order: Callable[[], None]) -> bool:
        """Let the thread do something after its step; False if it does nothing any more."""
        with self._awake:
            if not self._closed:
                self._orders.append(order)
                self._awake.notify()
            return not self._closed

    def _run(self) -> None:
        try:
            while self._obey():
                try:
                    self._hand_out(self._engine.step())
                except Exception as error:  # of the model: those who wait must hear of it, and the next may be served
                    self._fail("the engine failed", error)
        finally:  # whatever ends the thread, nobody waits for it forever
            with self._awake:
                self._closed = True
                self._orders.clear()
            self._fail(_CLOSED)

    def _obey(self) -> bool:
        """Wait for something to do and carry out what was ordered; False once the engine is closed."""
        with self._awake:
            self._awake.wait_for(lambda: self._closed or self._orders or self._engine.has_work)
            orders = list(self._orders)
            self._orders.clear()
        for order in orders:
            order()
        return not self._closed

    def _add(self, id_: str, stream: _Stream, prompt: Any, params: SamplingParams, priority: int) -> None:
        try:
            self._engine.add_request(prompt, params, id=id_, priority=priority)
            self._streams[id_] = stream
        except Exception as error:  # refused: whoever asked is told
            stream.put(error)

    def _abort(self, id_: str) -> None:
        self._streams.pop(id_, None)
        self._engine.abort(id_)

    def _hand_out(self, updates: list[Update]) -> None:
        for update in updates:
            self._streams[update.request].put(update)
        for id_ in {update.request for update in updates if not self._engine.serves(update.request)}:
            del self._streams[id_]

    def _fail(self, message: str, cause: Exception | None = None) -> None:
        """Tell everybody who waits, and abort what they wait for."""
        for id_, stream in list(self._streams.items()):
            error = RequestError(message) if cause is None else RuntimeError(f"{message}: {cause}")
            error.__cause__ = cause
            stream.put(error)
            self._abort(id_)
