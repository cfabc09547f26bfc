"""`Stream`, the updates of one request on their way from the engine's thread to the task that reads them."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from typing import Self

from modelwright.engine.prepared import Prepared
from modelwright.engine.refusals import NOTHING_ALLOWED, Contradictory
from modelwright.engine.results import Update
from modelwright.errors import RequestFailed

_PIECES = 256
"""Pieces of text that are kept apart before they are put together: a short piece takes more room than its letters."""
_TOKEN, _LOGPROBS, _ALTERNATIVE = 16, 128, 96
"""Bytes that a drawn token takes, its id and its time; its log-probability; and each alternative."""


class Unread:
    """What one output gained since its reader last came, as one update; most readers come for each.

    Attributes:
        size: bytes that are kept.
    """

    __slots__ = ("_first", "_last", "_logprobs", "_texts", "_times", "_tokens", "size")

    def __init__(self, first: Update):
        self._first = self._last = first
        self.size = _size(first)

    def add(self, update: Update) -> int:
        """Take a further update; returns how many bytes more are kept."""
        if self._last is self._first:
            first = self._first
            self._texts, self._tokens = [first.text], list(first.tokens)
            self._logprobs, self._times = list(first.logprobs), _times(first)
        self._last = update
        self._texts.append(update.text)
        if len(self._texts) > _PIECES:
            self._texts = ["".join(self._texts)]
        self._tokens += update.tokens
        self._logprobs += update.logprobs
        self._times += _times(update)
        more = _size(update)
        self.size += more
        return more

    def joined(self) -> Update:
        """All of it as one."""
        if self._last is self._first:
            return self._first
        times = self._last.times
        return replace(
            self._first,
            text="".join(self._texts),
            tokens=tuple(self._tokens),
            logprobs=tuple(self._logprobs),
            completion=self._last.completion,
            times=None if times is None else replace(times, tokens=tuple(self._times)),
        )


def _size(update: Update) -> int:
    """Bytes that an update keeps."""
    text = update.text
    letters = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
    size = letters + _TOKEN * len(update.tokens)
    if update.logprobs:
        alternatives = sum(len(one.top) for one in update.logprobs)
        size += _LOGPROBS * len(update.logprobs) + _ALTERNATIVE * alternatives
    return size


def _times(update: Update) -> list[float]:
    return [] if update.times is None else list(update.times.tokens)


class Stream:
    """The updates of one request, for one task: ``async for update in stream``, until all its outputs have ended.

    Updates that nobody has read yet are joined, those of each output into one. A request that ends otherwise raises:
    `RequestError` where it is refused after all, `RequestFailed` where it cannot be finished (`TimedOut`, `SlowReader`
    among them), `Closed` with the engine.

    Args:
        id: the request's.
        prepared: what it asks.
        loop: of the task that reads.
        order_abort: asks the engine's thread to let go of the request.
        pause: seconds for which the reader is not woken again while outputs go on; 0 for one that reads each update.

    Attributes:
        started: whether the prompt is being read, or was; the engine's thread says so.
        ended: whether the engine's thread is done with it.
    """

    def __init__(
        self,
        id: str,
        prepared: Prepared,
        loop: asyncio.AbstractEventLoop,
        order_abort: Callable[["Stream"], None],
        pause: float = 0.0,
    ):
        self.id, self.prepared = id, prepared
        self.started = self.ended = False
        self._loop, self._order_abort = loop, order_abort
        self._pause, self._asleep_until = pause, 0.0
        self._left = prepared.params.n  # outputs whose end was not read
        self._lock = Lock()
        self._unread: dict[int, Unread] = {}
        self._size = 0
        self._error: BaseException | None = None
        self._reader: asyncio.Future[None] | None = None
        self._aborted = False
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return self.prepared.prompt_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Update:
        while True:
            update = self._take()
            if update is not None:
                return update
            if self._left == 0:
                raise StopAsyncIteration
            if self._error is not None:
                self._left = 0  # told once
                raise self._error
            self._reader = self._loop.create_future()
            await self._reader  # what came meanwhile wakes it: that is said on the loop, and so after this

    def abort(self) -> None:
        """End the request before the next step, wherever it stands; nothing if it has ended. On the loop's thread.

        Who reads gets what there is of its outputs, which end with ``abort``.
        """
        self.forget_timers()
        if not self._aborted and not self.ended:
            self._aborted = True
            self._order_abort(self)

    def give_up(self, error: BaseException) -> None:
        """`abort` where the reader is to get `error` instead of the ends of the outputs. On the loop's thread."""
        if self._aborted or self.ended:
            return
        self.fail(error)
        self.abort()
        self.wake()

    def set_timer(self, seconds: float, ring: Callable[[], None]) -> None:
        """Call `ring` on the loop then, unless the request has ended."""
        self._timers.append(self._loop.call_later(seconds, ring))

    def forget_timers(self) -> None:
        """Once it has ended."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def put(self, update: Update) -> int:
        """Keep an update for the reader, on any thread; returns how many bytes wait.

        What a prompt's own log-probabilities take is not counted, since they were asked for and come once.
        """
        with self._lock:
            if self._error is not None:
                return 0
            unread = self._unread.get(update.index)
            if unread is None:
                unread = self._unread[update.index] = Unread(update)
                self._size += unread.size
            else:
                self._size += unread.add(update)
            return self._size

    def is_due(self, update: Update, full: bool) -> bool:
        """Whether the reader is to be woken for an update that was `put`; on the engine's thread.

        Args:
            full: so much waits that it is to be read whatever the pause.
        """
        if not self._pause:
            return True
        now = time.monotonic()
        if now < self._asleep_until and update.completion is None and not full:
            return False
        self._asleep_until = now + self._pause
        return True

    def fail(self, error: BaseException, drop: bool = False) -> None:
        """Let the reader raise `error`, once it has read what waits, or at once with `drop`; the first one counts."""
        with self._lock:
            self._error = self._error or error
            if drop:
                self._unread.clear()
                self._size = 0

    def wake(self) -> None:
        """Let the reader look again; on the loop's thread."""
        if self.ended:
            self.forget_timers()
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _take(self) -> Update | None:
        with self._lock:
            if not self._unread:
                return None
            unread = self._unread.pop(next(iter(self._unread)))
            self._size -= unread.size
        update = unread.joined()
        self._left -= update.completion is not None
        if update.completion is not None and update.completion.error is not None:
            self._left = 0
            kind = Contradictory if update.completion.error == NOTHING_ALLOWED else RequestFailed
            raise kind(update.completion.error) from update.completion.cause
        return update
