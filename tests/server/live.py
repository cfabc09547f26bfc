"""A server in front of any ASGI application, on a free port of 127.0.0.1, in a thread of its own."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from modelwright.server.access_log import AccessLog
from modelwright.server.auth import Keys
from modelwright.server.guard import Guard
from modelwright.server.health import Condition, Health
from modelwright.server.listener import Listener
from modelwright.server.metrics import Metrics
from modelwright.server.settings import ServerSettings
from modelwright.server.sockets import listen


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error, whose whole form is asserted."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and 0 < len(error["message"]) <= 1000
        assert self.headers["content-type"] == "application/json"
        return error["code"]


@dataclass
class FakeEngine:
    """What is shown of an engine."""

    last_step: float = 0.0
    longest_step: float = 0.0
    has_work: bool = False
    alive: bool = True
    running: int = 0
    waiting: int = 0
    statistics: Any = None


@dataclass
class Live:
    port: int
    guard: Guard
    health: Health
    metrics: Metrics
    listener: Listener
    written: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """The access log, once every request has ended: a line comes after its answer."""
        deadline = time.monotonic() + 10
        while self.listener.server_state.tasks and time.monotonic() < deadline:
            time.sleep(0.002)
        return self.written

    def ask(self, path: str, method: str = "GET", body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request on a connection of its own; a body that is no bytes goes as JSON."""
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=120)

    def say(self, data: bytes) -> bytes:
        """What comes back for bytes as they are, until the server ends the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
            return b"".join(parts)


def one_reply(connection: socket.socket) -> bytes:
    """The next answer on a connection, which has a content-length."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += connection.recv(1)
    length = next(int(line.split(b":")[1]) for line in got.split(b"\r\n") if line.startswith(b"content-length"))
    while length:
        part = connection.recv(length)
        assert part
        got, length = got + part, length - len(part)
    return got


@contextmanager
def serving(app: Any, environ: Mapping[str, str] | None = None, engine: Any = None, **settings: Any) -> Iterator[Live]:
    """`app`, guarded, over sockets."""
    chosen = ServerSettings(**settings)
    chosen.check()
    health, metrics, lines = Health(chosen), Metrics(chosen, "tiny"), []
    guarded = Guard(chosen, Keys(chosen, environ or {}), health, metrics, AccessLog(chosen, lines.append))
    guarded.app = app
    if app is not None:
        health.state, health.engine = Condition.SERVING, engine or FakeEngine()
        metrics.watch(health.engine, {"block_size": 16}, health.stalled_for)
    sockets = listen(chosen.host, 0)
    listener = Listener(chosen, guarded, sockets, refused=metrics.refused)
    loop = asyncio.new_event_loop()
    up, down = threading.Event(), asyncio.Event()

    async def live() -> None:
        async with listener:
            up.set()
            await down.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(live(),), daemon=True)
    thread.start()
    assert up.wait(10)
    try:
        yield Live(sockets[0].getsockname()[1], guarded, health, metrics, listener, lines)
    finally:
        loop.call_soon_threadsafe(down.set)
        thread.join(10)
        loop.close()
        assert not thread.is_alive()
