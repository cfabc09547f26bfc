"""Drives an ASGI application in process, without sockets: replies, streams frame by frame, and clients who leave."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    """A whole reply."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error that it is; nothing else stands in such a body."""
        said = self.json()
        assert said.keys() == {"error"} and said["error"].keys() == {"message", "type", "param", "code"}
        return said["error"]

    def frames(self) -> list[Any]:
        """The data of a stream's events: objects, and the ``[DONE]`` at the end."""
        return frames_of(self.body)


def frames_of(body: bytes) -> list[Any]:
    found = []
    for block in body.decode().split("\n\n"):
        data = [line.removeprefix("data: ") for line in block.split("\n") if line.startswith("data: ")]
        if data:
            found.append(data[0] if data[0] == "[DONE]" else json.loads(data[0]))
    return found


@dataclass
class Open:
    """A request whose reply is still coming.

    Attributes:
        sent: what the application has sent.
        task: the application at work.
    """

    task: asyncio.Task[None]
    incoming: asyncio.Queue[dict[str, Any]]
    sent: list[dict[str, Any]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    taking: asyncio.Event = field(default_factory=asyncio.Event)

    def leave(self) -> None:
        """The client goes away."""
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def body(self) -> AsyncIterator[bytes]:
        """The pieces of the body as they come."""
        seen = 0
        while True:
            while seen < len(self.sent):
                message = self.sent[seen]
                seen += 1
                if message["type"] == "http.response.body":
                    yield message.get("body", b"")
                    if not message.get("more_body", False):
                        return
            if self.task.done():
                self.task.result()
                return
            self.news.clear()
            waiter = asyncio.ensure_future(self.news.wait())
            await asyncio.wait({waiter, self.task}, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()

    async def reply(self) -> Reply:
        """All of it."""
        body = b"".join([piece async for piece in self.body()])
        await self.task
        start = next(message for message in self.sent if message["type"] == "http.response.start")
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}
        return Reply(start["status"], headers, body)


class Client:
    """Asks an application."""

    def __init__(self, app: Any, headers: Mapping[str, str] | None = None):
        self._app, self._headers = app, {"host": "localhost", **(headers or {})}

    @asynccontextmanager
    async def open(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Open]:
        """A request, which the client leaves with the block."""
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        said = {**self._headers, **({} if body is None else {"content-type": "application/json"}), **(headers or {})}
        said = {"content-length": str(len(raw)), **said} if raw else said
        route, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": route,
            "raw_path": route.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in said.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        if "x-slow" not in said:  # a body that never comes
            incoming.put_nowait({"type": "http.request", "body": raw, "more_body": False})
        found = Open(task=None, incoming=incoming)  # type: ignore[arg-type]
        found.taking.set()

        async def send(message: dict[str, Any]) -> None:
            await found.taking.wait()
            found.sent.append(message)
            found.news.set()

        found.task = asyncio.ensure_future(self._app(scope, incoming.get, send))
        try:
            yield found
        finally:
            found.leave()
            found.taking.set()
            await asyncio.wait({found.task}, timeout=10)
            assert found.task.done(), "the application goes on although its client has left"

    async def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        """A whole reply."""
        async with self.open(method, path, body, headers) as request:
            return await request.reply()

    async def post(self, path: str, body: Any, **headers: str) -> Reply:
        return await self.ask("POST", path, body, headers)

    async def get(self, path: str, **headers: str) -> Reply:
        return await self.ask("GET", path, None, headers)
