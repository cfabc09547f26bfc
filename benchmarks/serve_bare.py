"""An application that only sends: what a frame costs uvicorn, uvloop and the system, whoever makes it.

python -m benchmarks.serve_bare PORT FRAMES_PER_SECOND
"""

import asyncio
import json
import sys
from typing import Any

import uvicorn

from modelwright.server.events import Text
from modelwright.server.frames import DONE, HEADERS, ChatFrames
from modelwright.server.wire.usage import CompletionDetails, PromptDetails, Usage


class Bare:
    """Streams of equal frames, all at one beat."""

    def __init__(self, rate: float):
        self._pause = 1 / rate
        self._waiting: list[asyncio.Future[None]] = []
        self._beats: asyncio.Task[None] | None = None
        frames = ChatFrames("chatcmpl-" + "x" * 22, 1_700_000_000, "vl2-nano", "fp_0123456789ab", with_usage=True)
        self._frame = frames.pieces(0, [Text("word ")], None, lambda: _usage(0))
        self._usage = frames.usage

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while scope["method"] == "POST":
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        count = json.loads(body)["max_tokens"] if body else 0
        for _ in range(count):
            await self._beat()
            await send({"type": "http.response.body", "body": self._frame, "more_body": True})
        await send({"type": "http.response.body", "body": self._usage(_usage(count)) + DONE})

    async def _beat(self) -> None:
        if self._beats is None:
            self._beats = asyncio.ensure_future(self._run())
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)


def _usage(tokens: int) -> Usage:
    return Usage(0, tokens, tokens, PromptDetails(), CompletionDetails())


if __name__ == "__main__":
    uvicorn.run(Bare(float(sys.argv[2])), port=int(sys.argv[1]), log_level="error", loop="uvloop", http="httptools")
