"""`read_body`, a request's body within its limits of bytes and time, and of no other type than JSON."""

import asyncio
from collections.abc import Iterable

from starlette.requests import ClientDisconnect, Request

from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError

_CURL = "curl needs -H 'content-type: application/json'"


async def read_body(request: Request, settings: ServerSettings) -> bytes:
    """All of a request's body.

    A length that is too large is refused before a byte is read, and a client that asks first (``Expect: 100-continue``)
    then sends none.

    Raises:
        ApiError: 413, it is larger than `max_body`; 415, it is something else than plain JSON; 408, it was not here
            within `body_timeout`.
        ClientDisconnect: nobody waits for an answer any more.
    """
    check_type(request.scope["headers"])
    length = _length(request.scope["headers"])
    if length is not None and length > settings.max_body:
        raise too_large(settings.max_body, length)
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.body_timeout):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect()
                part = message.get("body", b"")
                size += len(part)
                if size > settings.max_body:
                    raise too_large(settings.max_body)
                parts.append(part)
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise ApiError(
            408, "body_timeout", f"the body was not here within {settings.body_timeout:g} s; {size} bytes of it were"
        ) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def check_type(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise an ApiError, 415, for a body that is no JSON in UTF-8, or is packed."""
    types = [value for name, value in headers if name == b"content-type"]
    essence, _, parameters = (types[0] if len(types) == 1 else b"").partition(b";")
    if essence.strip().lower() != b"application/json":
        got = b", ".join(types).decode("latin-1") or "none"
        raise ApiError(415, "unsupported_media_type", f"content-type must be application/json, got {got:.80}: {_CURL}")
    name, _, charset = parameters.partition(b"=")
    if name.strip().lower() == b"charset" and charset.strip(b' "').lower() not in (b"utf-8", b"utf8"):
        raise ApiError(415, "unsupported_media_type", "the charset of content-type must be utf-8")
    packed = [value for name, value in headers if name == b"content-encoding"]
    if any(value.strip().lower() != b"identity" for value in packed):
        got = b", ".join(packed).decode("latin-1")
        raise ApiError(415, "unsupported_media_type", f"a body must not be packed, got content-encoding {got:.80}")


def too_large(limit: int, length: int | None = None) -> ApiError:
    """The error for a body above the limit."""
    got = "" if length is None else f", got {length}"
    return ApiError(413, "body_too_large", f"a body must have at most {limit} bytes (--max-body){got}")


def _length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    found = [value for name, value in headers if name == b"content-length"]
    return int(found[0]) if found and found[0].isdigit() and len(found[0]) < 20 else None
