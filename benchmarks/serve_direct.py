"""vl2-nano behind the server, with one path more: ``/direct?STREAMS,TOKENS`` asks the same engine on the same loop.

So what HTTP adds is measured within one process; two processes differ by a tenth in the same steps.

python -m benchmarks.serve_direct PORT
"""

import asyncio
import sys
import time
from typing import Any

import msgspec

from benchmarks.serve_client import QUESTION
from modelwright.engine.async_engine import AsyncEngine
from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.server.admission import on_a_thread
from modelwright.server.app import create_app
from modelwright.server.run import Application, Parts, serve
from modelwright.server.served import Served
from modelwright.server.settings import ServerSettings
from modelwright.serving.load import Loaded, load_network
from modelwright.serving.opened import find_model
from modelwright.serving.prompts import encode_messages


class Direct:
    """An application around the server's, which answers ``/direct`` itself."""

    def __init__(self, app: Any, loaded: Loaded, engine: AsyncEngine):
        self._app, self._loaded, self._engine = app, loaded, engine

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/direct":
            await self._app(scope, receive, send)
            return
        streams, tokens = map(int, scope["query_string"].split(b","))
        start, spent = time.perf_counter(), time.process_time()
        told = await asyncio.gather(*(self._one(tokens) for _ in range(streams)))
        seconds, used = time.perf_counter() - start, time.process_time() - spent
        firsts, ends = zip(*told, strict=True)
        rate, each = tokens * streams / seconds, used / tokens / streams
        body = msgspec.json.encode({"firsts": firsts, "ends": ends, "rate": rate, "cpu": each})
        length = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": body})

    async def _one(self, tokens: int) -> tuple[float, float]:
        """Seconds until the first text, and until the end."""
        start, first = time.perf_counter(), 0.0
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, skip_special_tokens=False)
        async for update in self._engine.stream(encode_messages(self._loaded, QUESTION), params):
            if not first and update.text:
                first = time.perf_counter() - start
        return first, time.perf_counter() - start


def main() -> int:
    settings = ServerSettings(port=int(sys.argv[1]), no_auth=True)

    def load(parts: Parts) -> Application:
        loaded = load_network(find_model("vl2-nano").checkpoint)
        engine = Engine(loaded.model, None, loaded.tokenizer)
        serving = on_a_thread(engine, settings)
        served = Served(loaded, serving, engine.context, engine.config.max_batch, ("vl2-nano",))
        return Application(Direct(create_app(served, settings, parts.metrics), loaded, serving), serving, {})

    return serve(settings, "vl2-nano", load, print)


if __name__ == "__main__":
    sys.exit(main())
