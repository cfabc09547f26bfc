"""`Exchange`, one request and the ways to answer it: a body read whole, a reply in JSON, a stream; and who leaves."""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from modelwright.server.access_log import Record
from modelwright.server.auth import Key
from modelwright.server.body import read_body
from modelwright.server.frames import HEADERS
from modelwright.server.json_body import as_struct, read_json
from modelwright.server.settings import ServerSettings
from modelwright.server.spoken import spoken
from modelwright.server.wire.errors import ApiError

SMALL = 2**16
"""Bytes of a body that is read on the event loop: a thread would take longer to wake."""
T = TypeVar("T")


class Disconnected(Exception):
    """The client left."""


class TooSlow(Exception):
    """The client took no byte for longer than it may."""


class Exchange:
    """One request.

    Attributes:
        started: the headers of a reply are out, so that an error can only be a frame.
    """

    def __init__(self, scope: Any, receive: Any, send: Any, settings: ServerSettings):
        self.scope, self.settings = scope, settings
        self._receive, self._send = receive, send
        self.started = False
        self._large = False  # whether the body is too large to be read on the loop
        self._writing: float | None = None  # since when the client was to take something

    @property
    def record(self) -> Record:
        return self.scope["state"]["record"]

    @property
    def key(self) -> Key:
        return self.scope["state"]["key"]

    async def json(self) -> dict[str, Any]:
        """The object that the body holds; fields that are closed for the key are refused.

        Raises:
            ApiError: the body is too large or too late, or is no such object.
        """
        try:
            raw = await read_body(Request(self.scope, self._receive), self.settings)
        except ClientDisconnect as error:
            raise Disconnected from error
        self._large = len(raw) > SMALL
        body = await asyncio.to_thread(read_json, raw) if self._large else read_json(raw)
        if self.settings.log_content or self.settings.trace_content:
            self.record.content = {"asked": spoken(body)}
        for name in self.key.closed_fields:
            if body.get(name) not in (None, False, 0) or (name == "prompt_logprobs" and body.get(name) is not None):
                raise ApiError(403, "forbidden_scope", f"{name} is closed for this key", param=name)
        return body

    async def read(self, body: dict[str, Any], kind: type[T]) -> T:
        """The request that a body says, as `as_struct` reads it."""
        return await asyncio.to_thread(as_struct, body, kind) if self._large else as_struct(body, kind)

    async def reply(self, value: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        """Answer with JSON."""
        body = msgspec.json.encode(value)
        more = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in (headers or {}).items()]
        kinds = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": [*kinds, *more]})
        shown = b"" if self.scope["method"] == "HEAD" else body
        await self._send({"type": "http.response.body", "body": shown})

    async def begin(self, headers: Mapping[str, str], first: bytes) -> None:
        """Begin a stream, with its first frames."""
        more = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in headers.items()]
        self.started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *more]})
        await self.write(first)

    async def write(self, frames: bytes, last: bool = False) -> None:
        """Send frames of a stream; `while_there` watches how long that takes."""
        self._writing = time.monotonic()
        try:
            await self._send({"type": "http.response.body", "body": frames, "more_body": not last})
        except OSError as error:  # the connection broke while it was written to
            raise Disconnected from error
        self._writing = None

    async def while_there(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives, as long as the client waits for it; when that leaves, the work is cancelled.

        Raises:
            Disconnected: the client left first.
            TooSlow: it took no byte for `write_timeout`.
        """
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._left())
        patience = self.settings.write_timeout
        try:
            while not task.done():
                done, _ = await asyncio.wait({task, gone}, timeout=patience / 4, return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    break
                if done:
                    raise Disconnected
                if self._writing is not None and time.monotonic() - self._writing > patience:
                    raise TooSlow
            return task.result()
        finally:
            for each in (task, gone):
                if not each.done():
                    each.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await each

    async def _left(self) -> None:
        """Return once the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
