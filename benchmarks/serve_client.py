"""A client for measuring a server: plain sockets, streams of server-sent events, and the time of each frame."""

import asyncio
import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any, Self

QUESTION = [{"role": "user", "content": "How many shapes are there?"}]


@dataclass
class Timed:
    """One request.

    Attributes:
        status: of HTTP; 0 where the connection broke before.
        first: seconds until the first token.
        gaps: seconds between further frames with text.
        tokens: new tokens, as the usage says.
        seconds: until the end.
        whole: the stream ended as a stream ends.
        text: all of it.
    """

    status: int = 0
    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    whole: bool = False
    text: str = ""


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, limit=2**24)


def mute(port: int, first: bytes = b"") -> socket.socket:
    """A connection on which `first` is sent and nothing is read, not even by asyncio, with little room on its way."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", port))
    made.setblocking(False)
    if first:
        made.send(first)
    return made


def head(method: str, path: str, body: bytes, keep: bool = False) -> bytes:
    """The request line and the headers."""
    said = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{said}content-length: {len(body)}\r\nconnection: {'keep-alive' if keep else 'close'}\r\n\r\n".encode()


class Kept:
    """A connection for one request after another, as clients' pools have them."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def __init__(self, port: int):
        self._port = port

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await connect(self._port)
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.writer.close()

    async def ask(self, path: str, body: Any) -> tuple[int, bytes]:
        """The status and the body of a whole reply, which says its length."""
        raw = json.dumps(body).encode()
        self.writer.write(head("POST", path, raw, keep=True) + raw)
        start, *headers = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        length = next(int(each[15:]) for each in headers if each.lower().startswith(b"content-length:"))
        return int(start.split()[1]), await self.reader.readexactly(length)


async def ask(port: int, path: str, body: Any = None) -> tuple[int, bytes]:
    """The status and the body of a whole reply."""
    raw = b"" if body is None else json.dumps(body).encode()
    reader, writer = await connect(port)
    try:
        writer.write(head("GET" if body is None else "POST", path, raw) + raw)
        reply = await reader.read()
    finally:
        writer.close()
    start, _, rest = reply.partition(b"\r\n\r\n")
    return int(start.split()[1]), rest


async def stream(
    port: int, body: dict[str, Any], kept: Kept | None = None, path: str = "/v1/chat/completions"
) -> Timed:
    """An answer in pieces, timed, on a connection of its own or on one that is open already."""
    timed, start = Timed(), time.perf_counter()
    raw = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    try:
        reader, writer = await connect(port) if kept is None else (kept.reader, kept.writer)
    except OSError:
        return timed
    try:
        writer.write(head("POST", path, raw, keep=kept is not None) + raw)
        timed.status = int((await reader.readline()).split()[1])
        last = None
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                timed.whole = True
                if kept is not None:
                    await reader.readuntil(b"0\r\n\r\n")  # the last chunk
                break
            said = json.loads(line[6:])
            now = time.perf_counter()
            if said.get("usage"):
                timed.tokens = said["usage"]["completion_tokens"]
            if text := "".join(map(_text, said.get("choices", ()))):
                timed.text += text
                if last is None:
                    timed.first = now - start
                else:
                    timed.gaps.append(now - last)
                last = now
    except (OSError, IndexError, ValueError):
        pass
    finally:
        if kept is None:
            writer.close()
    timed.seconds = time.perf_counter() - start
    return timed


def _text(choice: dict[str, Any]) -> str:
    """What a frame adds to a choice, of a chat or of a completion."""
    return (choice["delta"].get("content") if "delta" in choice else choice.get("text")) or ""


async def read_to_end(port: int, body: dict[str, Any]) -> None:
    """A chat completion in pieces, of which nothing is looked at but its end: what takes a client least."""
    raw = json.dumps(body | {"stream": True}).encode()
    reader, writer = await connect(port)
    writer.write(head("POST", "/v1/chat/completions", raw) + raw)
    last = b""
    while piece := await reader.read(2**16):
        last = (last + piece)[-64:]
    writer.close()
    assert b"data: [DONE]" in last, last


def percentile(values: list[float], share: float) -> float:
    """The value below which so large a share of `values` lies."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")
