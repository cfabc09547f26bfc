"""From where a server may be called: the `Host` that requests name, and the `Origin` of the pages that send them."""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from modelwright.errors import ConfigError
from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError

Headers = Sequence[tuple[bytes, bytes]]
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::(\d{1,5}))?")
_PORTS = {"http": 80, "https": 443}
_ALLOWED = b"GET, HEAD, POST, DELETE, OPTIONS"
_EXPOSED = b"x-request-id, openai-processing-ms, retry-after, retry-after-ms, x-modelwright-ignored"
_SAFE = ("GET", "HEAD", "OPTIONS")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at `host`."""
    if host.lower() == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


class Origins:
    """What is allowed, from the settings.

    Raises:
        ConfigError: an origin that is none, like one with a path.
    """

    def __init__(self, settings: ServerSettings):
        self._names = {"localhost", settings.host.lower()} | {name.lower() for name in settings.allowed_host}
        address = _address(settings.host)
        self._any_address = address is not None and address.is_unspecified and settings.uds is None
        self._loopback = is_loopback(settings.host) or settings.uds is not None
        self._everybody = "*" in settings.cors_origin
        self._origins = {_checked(origin) for origin in settings.cors_origin if origin != "*"}

    def check_host(self, headers: Headers, version: str) -> None:
        """Raise an ApiError where a request calls the server by another name: a page may have rebound its own to us.

        An address is no name that anybody could rebind, so where all addresses are listened at, each is taken.
        """
        named = [value for name, value in headers if name == b"host"]
        if not named and version == "1.0":  # of no browser
            return
        found = _HOST.fullmatch(named[0].decode("latin-1")) if len(named) == 1 else None
        if found is None:
            raise ApiError(400, "invalid_value", "a request must have one Host header, a name or an address")
        name = found[1].lower().strip("[]").rstrip(".")
        if name in self._names or any(name.endswith(each[1:]) for each in self._names if each.startswith("*.")):
            return
        address = _address(name)
        if address is not None and (self._any_address or (self._loopback and address.is_loopback)):
            return
        raise ApiError(403, "forbidden_host", f"this server is not called {name:.200}; --allowed-host lets it be")

    def check_origin(self, headers: Headers, method: str) -> None:
        """Raise an ApiError where a page of another origin, which is not allowed, wants something done."""
        origin = origin_of(headers)
        if origin is None or method in _SAFE or self._allows(origin) or _same(origin, headers):
            return
        raise ApiError(
            403, "forbidden_origin", f"pages of {origin:.200} may not call this server; --cors-origin lets them"
        )

    def is_preflight(self, headers: Headers, method: str) -> bool:
        """Whether a browser asks whether it may send an allowed page's request, for which no key is needed."""
        origin = origin_of(headers)
        asks = any(name == b"access-control-request-method" for name, _ in headers)
        return method == "OPTIONS" and asks and origin is not None and self._allows(origin)

    def preflight(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """The headers of the answer to it, besides those of `response`."""
        asked = b", ".join(value for name, value in headers if name == b"access-control-request-headers")
        return [
            (b"access-control-allow-methods", _ALLOWED),
            (b"access-control-allow-headers", asked or b"authorization, content-type, x-api-key, x-request-id"),
            (b"access-control-max-age", b"600"),
        ]

    def response(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """What tells the browser that the page may read the answer; nothing where no page may."""
        if not self._everybody and not self._origins:
            return []
        origin = origin_of(headers)
        if origin is not None and origin in self._origins:
            return [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", _EXPOSED),
                (b"vary", b"origin"),
            ]
        if self._everybody:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED)]
        return [(b"vary", b"origin")]

    def _allows(self, origin: str) -> bool:
        return self._everybody or origin in self._origins


def origin_of(headers: Headers) -> str | None:
    """The page's origin; several, which no browser sends, are one that nobody has."""
    named = [value for name, value in headers if name == b"origin"]
    return b",".join(named).decode("latin-1") if named else None


def _same(origin: str, headers: Headers) -> bool:
    """Whether the page came from this server, whatever a proxy in front made of the scheme."""
    try:
        parts = urlsplit(origin)
        own = urlsplit("//" + next((value for name, value in headers if name == b"host"), b"").decode("latin-1"))
        port = _PORTS.get(parts.scheme)
        return bool(parts.hostname) and (parts.hostname, parts.port or port) == (own.hostname, own.port or port)
    except ValueError:
        return False


def _checked(origin: str) -> str:
    try:
        parts = urlsplit(origin)
        whole = f"{parts.scheme}://{parts.netloc}"
        fine = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0 and whole == origin == origin.lower()
        fine = fine and "*" not in origin and "@" not in origin
    except ValueError:
        fine = False
    if not fine:
        raise ConfigError(
            f"cors_origin must be like https://example.org, in small letters and with nothing behind, or *; "
            f"got {origin!r:.80}",
            field="cors_origin",
        )
    return origin


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
