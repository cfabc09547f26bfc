"""A trivial application behind the guard: it reads a body and sends it back."""

import asyncio
from typing import Any

from starlette.requests import Request

from modelwright.server.body import read_body
from modelwright.server.settings import ServerSettings


def echo(**settings: Any) -> Any:
    """An application that answers POST with its body, and GET with the name of the key."""
    chosen = ServerSettings(**settings)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].endswith("/slow"):
            await asyncio.sleep(0.5)
        if scope["path"].endswith("/fail"):
            raise RuntimeError("secret-of-the-house")
        body = scope["state"]["key"].name.encode()
        if scope["method"] == "POST":
            body = await read_body(Request(scope, receive), chosen)
        headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app
