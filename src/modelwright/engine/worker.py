"""`Worker`, the thread that an engine computes on for others: it steps, obeys orders between steps, fills streams."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from modelwright.engine.counts import Counts
from modelwright.engine.engine import Engine
from modelwright.engine.refusals import Closed, Died, SlowReader
from modelwright.engine.results import EngineStatistics, Update
from modelwright.engine.streams import Stream

_FULL = 4
"""The part of what may wait in a stream, as one of so many, at which a reader that pauses is woken."""

GIVE_WAY = 1e-3
"""Seconds for which the thread waits until the loop has its turn. Else the loop may get none for the length of a step:
each kernel lets go of the interpreter's lock, and takes it again before the loop, whose wait begins anew, is awake."""


class Worker:
    """Runs `engine` on a thread of its own from now on.

    Args:
        engine: nobody else uses it.
        counts: kept up here, with `Counts.came` left to whoever makes streams.
        max_unread: bytes that may wait in a stream.
        on_change: called on the loop when a request was begun or has ended, or the thread has.
    """

    def __init__(self, engine: Engine, counts: Counts, max_unread: int, on_change: Callable[[], None]):
        self._engine, self._counts, self._max_unread, self._on_change = engine, counts, max_unread, on_change
        self._loop: asyncio.AbstractEventLoop | None = None
        self._orders: deque[Callable[[], None]] = deque()  # what is to be done between steps
        self._awake = threading.Condition()
        self._streams: dict[str, Stream] = {}
        self._touched: dict[Stream, None] = {}  # whose readers are to look again
        self._changed = self._closed = False
        self._told = threading.Event()  # whether the loop has come since it was last called
        self._told.set()
        self.death: BaseException | None = None
        self.on_step: Callable[[EngineStatistics], None] | None = None
        engine.on_start = self._started
        self._thread = threading.Thread(target=self._run, name="modelwright-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs, and goes on."""
        return self._thread.is_alive() and not self._closed

    def serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """The readers' loop."""
        self._loop = loop

    def order(self, order: Callable[[], None]) -> bool:
        """Let the thread do something after its step; False if it does nothing any more."""
        with self._awake:
            if not self._closed:
                self._orders.append(order)
                self._awake.notify()
            return not self._closed

    def close(self) -> None:
        """End the thread after its step."""
        with self._awake:
            self._closed = True
            self._awake.notify()
        self._thread.join()

    def closed(self) -> Closed:
        """The error for whoever asks something of a thread that has ended."""
        if self.death is None:
            return Closed()
        error = Died(f"the engine has ended: {type(self.death).__name__} {self.death}".rstrip())
        error.__cause__ = self.death
        return error

    def add(self, stream: Stream, priority: int, arrived: float) -> None:
        """Begin to serve a stream, on the thread."""
        self._streams[stream.id] = stream
        try:
            self._engine.add(stream.prepared, id=stream.id, priority=priority, arrived=arrived)
        except Exception as error:  # refused after all: the model has become another one
            stream.fail(error)
            self._let_go(stream)

    def abort(self, stream: Stream) -> None:
        """Let go of a stream, on the thread; its outputs end with what they have."""
        if stream.id in self._streams:
            self._hand_out(self._engine.abort(stream.id))

    def abort_all(self) -> None:
        """`abort` every stream, on the thread."""
        for stream in list(self._streams.values()):
            self.abort(stream)

    def _run(self) -> None:
        try:
            while self._obey():
                began, before = time.monotonic(), self._engine.statistics
                self._hand_out(self._step())
                self._counts.stepped(began)
                done = self._engine.statistics
                if self.on_step is not None and done is not None and done is not before:
                    self.on_step(done)
                self._wake()
        except BaseException as error:
            self.death = error
            raise
        finally:  # whatever ends the thread, nobody waits for it forever
            with self._awake:
                self._closed = True
            self._obey()  # those who asked last have streams, and must be told too
            for stream in list(self._streams.values()):
                stream.fail(self.closed())
                self._engine.abort(stream.id)
                self._let_go(stream)
            self._changed = True
            self._wake()

    def _step(self) -> list[Update]:
        try:
            return self._engine.step()
        except Exception as error:
            return self._engine.recover(error)

    def _obey(self) -> bool:
        """Wait for something to do and carry out what was ordered; False once the engine is closed."""
        with self._awake:
            self._awake.wait_for(lambda: self._closed or self._orders or self._engine.has_work)
            orders = list(self._orders)
            self._orders.clear()
        for order in orders:
            order()
        if orders:
            self._wake()
        return not self._closed

    def _started(self, id: str) -> None:
        stream = self._streams[id]
        stream.started = self._changed = True
        self._counts.started(stream.prompt_tokens)

    def _hand_out(self, updates: Iterable[Update]) -> None:
        ended: dict[Stream, None] = {}
        for update in updates:
            stream = self._streams[update.request]
            waiting = stream.put(update)
            if stream.is_due(update, full=_FULL * waiting > self._max_unread):
                self._touched[stream] = None
            if waiting > self._max_unread and stream not in ended:
                stream.fail(SlowReader(waiting, self._max_unread), drop=True)
                self._engine.abort(stream.id)
            if not self._engine.serves(stream.id):
                ended[stream] = None
        for stream in ended:
            self._let_go(stream)

    def _let_go(self, stream: Stream) -> None:
        del self._streams[stream.id]
        stream.ended = self._changed = True
        self._touched[stream] = None
        self._counts.ended(stream.prompt_tokens, stream.started)

    def _wake(self) -> None:
        """Let the readers of what has changed look, all in one call to the loop."""
        touched, changed = list(self._touched), self._changed
        self._touched.clear()
        self._changed = False
        if self._loop is not None and (touched or changed):
            comes = self._told.is_set()
            self._told.clear()
            with suppress(RuntimeError):  # a loop that is closed has nobody left to read
                self._loop.call_soon_threadsafe(self._tell, touched, changed)
                if comes:  # one that is held up is not waited for again
                    self._told.wait(GIVE_WAY)

    def _tell(self, touched: list[Stream], changed: bool) -> None:
        self._told.set()
        for stream in touched:
            stream.wake()
        if changed:
            self._on_change()
