"""A server whose engine computes nothing and gives each stream so many tokens a second: what is left is HTTP's price.

python -m benchmarks.serve_fake PORT TOKENS_PER_SECOND
"""

import asyncio
import sys
import time
from types import SimpleNamespace
from typing import Any

from modelwright.engine.output import FinishReason
from modelwright.engine.refusals import Draining, QueueFull
from modelwright.engine.results import Completion, Times, Update
from modelwright.server.app import create_app
from modelwright.server.run import Application, Parts, serve
from modelwright.server.served import Served
from modelwright.server.settings import ServerSettings
from modelwright.serving.load import load_network
from modelwright.serving.opened import find_model

MAX_BATCH, MAX_QUEUE = 256, 1024
TICK = 0.01
"""Seconds of a step."""


class FakeStream:
    """Tokens for one request, as long as it wants some."""

    def __init__(self, engine: "FakeEngine", prepared: Any):
        self.prepared, self.started = prepared, True
        self._engine, self._queue = engine, asyncio.Queue[Update]()
        self._left = prepared.params.max_tokens
        self._owed, self._first, self._ended = 0.0, True, False

    def give(self, tokens: float) -> None:
        """Its share of a step."""
        self._owed += tokens
        count = min(int(self._owed), self._left)
        if count <= 0:
            return
        self._owed -= count
        self._left -= count
        now = time.monotonic()
        done = None if self._left else Completion(0, "", (), FinishReason.LENGTH, None, None)
        cached, self._first = (0 if self._first else None), False
        times = Times(now, now, now, (now,) * count)
        self._queue.put_nowait(Update("", 0, "word " * count, (1,) * count, (), done, None, cached, times))
        if done is not None:
            self.abort()

    def abort(self) -> None:
        if not self._ended:
            self._ended = True
            self._engine.streams.discard(self)

    def __aiter__(self) -> "FakeStream":
        return self

    async def __anext__(self) -> Update:
        if self._ended and self._queue.empty():
            raise StopAsyncIteration
        return await self._queue.get()


class FakeEngine:
    """What a server asks of an `AsyncEngine`."""

    alive, longest_step, statistics, waiting, queued_tokens = True, TICK, None, 0, 0

    def __init__(self, rate: float):
        self.streams: set[FakeStream] = set()
        self.last_step, self._rate, self._draining = time.monotonic(), rate, False
        self._steps: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        return len(self.streams)

    @property
    def has_work(self) -> bool:
        return bool(self.streams)

    def prepare(self, prompt: Any, params: Any, *, salt: str = "") -> Any:
        sequence = SimpleNamespace(computed=0)
        tokens = tuple(prompt.input_ids.tolist())
        return SimpleNamespace(params=params, tokens=tokens, samples=[SimpleNamespace(sequence=sequence)])

    def submit(self, prepared: Any, **_: Any) -> FakeStream:
        if self._draining:
            raise Draining()
        if self.running >= MAX_BATCH + MAX_QUEUE:
            raise QueueFull("requests", MAX_BATCH + MAX_QUEUE, self.running + 1)
        if self._steps is None:
            self._steps = asyncio.ensure_future(self._run())
        stream = FakeStream(self, prepared)
        self.streams.add(stream)
        return stream

    async def drain(self, timeout: float) -> None:
        self._draining = True
        end = time.monotonic() + timeout
        while self.streams and time.monotonic() < end:
            await asyncio.sleep(TICK)

    def watch_steps(self, see: Any) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing is left to end."""

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self.last_step = time.monotonic()
            share = self._rate * TICK
            for stream in list(self.streams):
                stream.give(share)


def main() -> int:
    port, rate = int(sys.argv[1]), float(sys.argv[2])
    settings = ServerSettings(
        port=port, max_queue=MAX_QUEUE, no_auth=True, max_connections=8192, max_connections_per_address=8192
    )

    def load(parts: Parts) -> Application:
        loaded = load_network(find_model("vl2-nano").checkpoint)
        engine: Any = FakeEngine(rate)
        served = Served(loaded, engine, 2048, MAX_BATCH, ("vl2-nano",))
        return Application(create_app(served, settings, parts.metrics), engine, {})

    return serve(settings, "vl2-nano", load, print)


if __name__ == "__main__":
    sys.exit(main())
