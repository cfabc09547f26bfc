"""A server whose engine computes nothing and gives each stream so many tokens a second: what is left is HTTP's price.

python -m benchmarks.serve_fake PORT TOKENS_PER_SECOND
"""

import asyncio
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from modelwright.engine.output import FinishReason
from modelwright.engine.refusals import Draining, QueueFull, SlowReader
from modelwright.engine.results import Completion, Times, Update
from modelwright.engine.streams import Stream
from modelwright.server.app import create_app
from modelwright.server.run import Application, Parts, serve
from modelwright.server.served import Served
from modelwright.server.settings import ServerSettings
from modelwright.serving.load import load_network
from modelwright.serving.opened import find_model

MAX_BATCH, MAX_QUEUE = 256, 1024
UNREAD = 2**20
"""Bytes that may wait for a reader, as in an `AsyncEngine`."""


class FakeEngine:
    """What a server asks of an `AsyncEngine`; each step gives every stream a token, and takes no processor time."""

    alive, statistics, waiting, queued_tokens = True, None, 0, 0

    def __init__(self, rate: float):
        self.last_step, self.longest_step, self._draining = time.monotonic(), 1 / rate, False
        self._left: dict[Stream, int] = {}
        self._steps: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        return len(self._left)

    @property
    def has_work(self) -> bool:
        return bool(self._left)

    def prepare(self, prompt: Any, params: Any, *, salt: str = "") -> Any:
        sequence, tokens = SimpleNamespace(computed=0), tuple(prompt.input_ids.tolist())
        samples = [SimpleNamespace(sequence=sequence)]
        return SimpleNamespace(params=params, tokens=tokens, prompt_tokens=len(tokens), samples=samples)

    def submit(self, prepared: Any, **_: Any) -> Stream:
        if self._draining:
            raise Draining()
        if self.running >= MAX_BATCH + MAX_QUEUE:
            raise QueueFull("requests", MAX_BATCH + MAX_QUEUE, self.running + 1)
        if self._steps is None:
            self._steps = asyncio.ensure_future(self._run())
        stream = Stream("", prepared, asyncio.get_running_loop(), self._end)
        stream.started, self._left[stream] = True, prepared.params.max_tokens
        return stream

    async def drain(self, timeout: float) -> None:
        self._draining = True
        end = time.monotonic() + timeout
        while self._left and time.monotonic() < end:
            await asyncio.sleep(0.01)

    def watch_steps(self, see: Any) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing is left to end."""

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.longest_step)
            self.last_step = now = time.monotonic()
            times = Times(now, now, now, (now,))
            first, further = (Update("", 0, "word ", (1,), cached_tokens=n, times=times) for n in (0, None))
            last = replace(further, completion=Completion(0, "", (), FinishReason.LENGTH, None, None))
            for stream, left in list(self._left.items()):
                begins = left == stream.prepared.params.max_tokens
                self._give(stream, last if left == 1 else first if begins else further)

    def _give(self, stream: Stream, update: Update) -> None:
        waiting = stream.put(update)
        self._left[stream] -= 1
        if update.completion is not None:
            self._end(stream)
        elif waiting > UNREAD:
            stream.fail(SlowReader(waiting, UNREAD), drop=True)
            self._end(stream)
        stream.wake()

    def _end(self, stream: Stream) -> None:
        self._left.pop(stream, None)
        stream.ended = True


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
