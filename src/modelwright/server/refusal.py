"""An `ApiError` on its way to the client, for those parts of the server that stand in front of every route."""

from typing import Any

from modelwright.server.wire.errors import ApiError


async def refuse(scope: Any, send: Any, error: ApiError) -> None:
    """Answer with the error; to HEAD with its headers alone."""
    body = error.body()
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in error.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
