"""From prompts that are ready to the updates of their answers: submitted, counted, let go when nobody waits."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from modelwright.engine.async_engine import AsyncEngine
from modelwright.engine.refusals import Closed, Contradictory, Died, LargerThanCache, QueueFull, SlowReader, TimedOut
from modelwright.engine.results import Update
from modelwright.engine.streams import Stream
from modelwright.errors import RequestError, RequestFailed
from modelwright.server.admission import Admission
from modelwright.server.exchange import TooSlow
from modelwright.server.live import Live
from modelwright.server.metrics import Metrics
from modelwright.server.prepare import Ready
from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError
from modelwright.server.wire.sampling import SamplingFields

PAUSE = 0.25
"""Seconds between two looks at an answer that is told as a whole; what counts tokens and phases sees no more of it."""


class Piece(NamedTuple):
    """An update of one of a request's prompts."""

    prompt: int
    update: Update


class Running:
    """The prompts of one request in the engine; leave the ``with`` block and what has not ended is aborted."""

    def __init__(
        self, engine: AsyncEngine, streams: Sequence[Stream], ready: Sequence[Ready], live: Live, metrics: Metrics
    ):
        self._engine, self._streams, self._ready, self._live, self._metrics = engine, streams, ready, live, metrics
        self._draws = False

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *exception: object) -> None:
        self.abort()

    def abort(self) -> None:
        """End what has not ended, before the next step."""
        for stream in self._streams:
            stream.abort()

    async def pieces(self) -> AsyncIterator[Piece]:
        """The updates as they come.

        Raises:
            ApiError: an answer cannot be finished.
        """
        if len(self._streams) == 1:
            try:
                async for update in self._streams[0]:
                    yield self._counted(0, update)
            except Exception as error:
                raise _as_error(error) from error
            return
        waiting = {asyncio.ensure_future(anext(stream)): at for at, stream in enumerate(self._streams)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    at = waiting.pop(task)
                    try:
                        update = task.result()
                    except StopAsyncIteration:
                        continue
                    except Exception as error:
                        raise _as_error(error) from error
                    waiting[asyncio.ensure_future(anext(self._streams[at]))] = at
                    yield self._counted(at, update)
        finally:
            for task in waiting:
                task.cancel()
            for task in waiting:
                with suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                    await task

    def _counted(self, at: int, update: Update) -> Piece:
        self._ready[at].meter.take(update, self._metrics)
        if not self._draws:
            self._draws = True
            self._live.enter("decode")
        return Piece(at, update)

    def finished(self) -> None:
        """Count the answers, which have all ended by themselves."""
        for each in self._ready:
            for answer in each.answers:
                each.meter.finished(answer.finish_reason, answer.tokens, self._metrics)
        answers = [answer for each in self._ready for answer in each.answers]
        record = self._live.record
        record.finish_reason = answers[0].finish_reason
        if record.content is not None:
            record.content["answered"] = [answer.completion.text for answer in answers if answer.completion is not None]

    def progress(self) -> dict[str, int | str]:
        """Where the first prompt stands: how many wait, it among them, or how much of it was read."""
        stream, tokens = self._streams[0], self._ready[0].meter.prompt_tokens
        if not stream.started:
            return {"phase": "queued", "position": self._engine.waiting, "prompt_tokens": tokens, "read": 0}
        read = min(self._ready[0].prepared.samples[0].sequence.computed, tokens)
        return {"phase": "reading", "position": 0, "prompt_tokens": tokens, "read": read}


class Answering:
    """Hands prompts to the engine."""

    def __init__(self, engine: AsyncEngine, admission: Admission, settings: ServerSettings, metrics: Metrics):
        self._engine, self._admission, self._settings, self._metrics = engine, admission, settings, metrics

    def submit(self, ready: Sequence[Ready], request: SamplingFields, live: Live) -> Running:
        """Let the engine begin.

        Raises:
            ApiError: it takes no more.
        """
        most = self._settings.request_timeout
        seconds = request.timeout if most is None else min(request.timeout or most, most)
        whole = not live.record.stream and not any(answer.thinks for each in ready for answer in each.answers)
        streams: list[Stream] = []
        try:
            for each in ready:
                submitted = self._engine.submit(
                    each.prepared,
                    priority=request.priority or 0,
                    timeout=seconds,
                    queue_timeout=self._settings.queue_timeout,
                    spent=time.monotonic() - live.started,
                    pause=PAUSE if whole else 0.0,
                )
                streams.append(submitted)
        except Exception as error:
            for stream in streams:
                stream.abort()
            raise self._refusal(error) from error
        live.enter("queue")
        live.meters, live.streams = [each.meter for each in ready], streams
        return Running(self._engine, streams, ready, live, self._metrics)

    def _refusal(self, error: Exception) -> Exception:
        if isinstance(error, QueueFull):
            code = "queue_full" if error.what == "requests" else "queue_tokens_full"
            return self._admission.full(code, str(error))
        return _as_error(error)


def _as_error(error: Exception) -> Exception:
    """What the client is told where the engine does not go on."""
    match error:
        case SlowReader():
            return TooSlow()
        case TimedOut(waited=True):
            return ApiError(503, "queue_timeout", str(error), headers={"retry-after": "5"})
        case TimedOut():
            return ApiError(400, "request_timeout", str(error))  # not one that clients repeat by themselves
        case Died():
            return ApiError(503, "engine_stalled", "the engine has ended, and the server with it")
        case Closed():
            return ApiError(503, "shutting_down", "the server is shutting down", headers={"retry-after": "30"})
        case LargerThanCache():
            return ApiError(400, "request_too_large_for_cache", str(error))
        case Contradictory():
            return ApiError(400, "invalid_value", str(error))
        case RequestFailed():
            return ApiError(500, "model_failed", str(error))
        case RequestError():
            return ApiError.of(error)
    return error
