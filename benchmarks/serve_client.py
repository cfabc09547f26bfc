"""A client for measuring a server: plain sockets, streams of server-sent events, and the time of each frame."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any


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
    """

    status: int = 0
    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    whole: bool = False


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, limit=2**24)


def head(method: str, path: str, body: bytes) -> bytes:
    """The request line and the headers."""
    said = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{said}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()


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


async def stream(port: int, body: dict[str, Any]) -> Timed:
    """A chat completion in pieces, timed."""
    timed, start = Timed(), time.perf_counter()
    raw = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    try:
        reader, writer = await connect(port)
    except OSError:
        return timed
    try:
        writer.write(head("POST", "/v1/chat/completions", raw) + raw)
        timed.status = int((await reader.readline()).split()[1])
        last = None
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                timed.whole = True
                break
            said = json.loads(line[6:])
            now = time.perf_counter()
            if said.get("usage"):
                timed.tokens = said["usage"]["completion_tokens"]
            if any(choice["delta"].get("content") for choice in said.get("choices", ())):
                if last is None:
                    timed.first = now - start
                else:
                    timed.gaps.append(now - last)
                last = now
    except (OSError, IndexError, ValueError):
        pass
    finally:
        writer.close()
    timed.seconds = time.perf_counter() - start
    return timed


def percentile(values: list[float], share: float) -> float:
    """The value below which so large a share of `values` lies."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")
