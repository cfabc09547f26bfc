"""Pictures fetched from hosts on a list: one address, resolved once and checked, a few seconds, so many bytes."""

import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any

from modelwright.server.addresses import may_call
from modelwright.server.picture_hosts import PictureHosts, PictureUrl
from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError

ALL_SECONDS = 10.0
"""For a picture in all, redirects included."""
READ_SECONDS = 5.0
"""For each call of the network."""
REDIRECTS = 3
_MOVED = (301, 302, 303, 307, 308)
_PIECE = 64 * 1024

Resolver = Callable[..., list[tuple[Any, ...]]]


class _Clock:
    """What is left of the time of one picture."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def seconds(self) -> float:
        left = min(READ_SECONDS, self._end - time.monotonic())
        if left <= 0:
            raise TimeoutError
        return left


class _Incoming(io.RawIOBase):
    """What a connection brings; every read has its own time, and all together that of the picture."""

    def __init__(self, connection: socket.socket, clock: _Clock):
        self._connection, self._clock = connection, clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._connection.settimeout(self._clock.seconds())
        return self._connection.recv_into(buffer)

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        """As a socket does for ``http.client``."""
        return io.BufferedReader(self)


class Fetcher:
    """Fetches pictures without proxies, cookies or redirects that nobody checks; every method may be called anywhere.

    Args:
        settings: which hosts, how many bytes, and whether private addresses are called.
        resolve: as ``socket.getaddrinfo``.
    """

    def __init__(self, settings: ServerSettings, resolve: Resolver = socket.getaddrinfo):
        self._hosts = PictureHosts(settings.picture_host)
        self._most, self._private, self._resolve = settings.max_picture_bytes, settings.picture_private, resolve

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    def check(self, url: str, where: str) -> PictureUrl:
        """The parsed URL of a picture; no socket is opened and no name resolved.

        Raises:
            ApiError: it is not plainly a URL, or its host or port is not on the list.
        """
        return self._checked(PictureUrl.read(url), where)

    def fetch(self, url: PictureUrl, where: str, seconds: float = ALL_SECONDS) -> bytes:
        """The bytes of a picture.

        Raises:
            ApiError: anything but an answer 200 of the length it says, in time, from an address that may be called.
        """
        clock = _Clock(seconds)
        try:
            for _ in range(REDIRECTS + 1):
                with self._answer(url, clock, where) as answer:
                    if answer.status not in _MOVED:
                        return self._body(answer, where)
                    target = url.joined(answer.headers.get("location") or "")
                safe = target is None or url.scheme == "http" or target.scheme == "https"
                url = self._checked(target if safe else None, where)
        except TimeoutError:
            raise _failed(where, f"it did not come within {seconds:g} s, {READ_SECONDS:g} s a read") from None
        except (OSError, http.client.HTTPException, ValueError):  # ValueError of a header that is no number
            raise _failed(where, "the host was not reached, or its answer is no valid HTTP") from None
        raise _failed(where, f"it was redirected more than {REDIRECTS} times")

    def _checked(self, url: PictureUrl | None, where: str) -> PictureUrl:
        if url is None or not self._hosts.allow(url):
            message = f"{where}: pictures are not fetched from this host; send the picture as a data: URL"
            raise ApiError(400, "picture_host_not_allowed", message, param=where)
        return url

    @contextmanager
    def _answer(self, url: PictureUrl, clock: _Clock, where: str) -> Iterator[http.client.HTTPResponse]:
        with closing(self._connect(url, clock, where)) as connection:
            lines = (
                f"GET {url.target} HTTP/1.1",
                f"Host: {url.authority}",
                "User-Agent: modelwright",
                "Accept: image/png, image/jpeg, image/webp, image/gif",
                "Accept-Encoding: identity",
                "Connection: close",
            )
            connection.settimeout(clock.seconds())
            connection.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
            with closing(http.client.HTTPResponse(_Incoming(connection, clock))) as answer:  # pyright: ignore[reportArgumentType]
                answer.begin()
                yield answer

    def _connect(self, url: PictureUrl, clock: _Clock, where: str) -> socket.socket:
        """A connection to the first address that answers, of a host all of whose addresses have been checked."""
        found = self._resolve(url.host, url.port, type=socket.SOCK_STREAM)
        if not found or not all(may_call(address[0], private=self._private) for *_, address in found):
            message = f"{where}: the picture's host has an address that is not called"
            raise ApiError(400, "picture_host_not_allowed", message, param=where)
        connection = _first_of(found, clock)
        if url.scheme == "http":
            return connection
        try:
            connection.settimeout(clock.seconds())
            return self._tls.wrap_socket(connection, server_hostname=url.host)
        except BaseException:
            connection.close()
            raise

    def _body(self, answer: http.client.HTTPResponse, where: str) -> bytes:
        if answer.status != 200:
            raise _failed(where, f"the host answered with status {answer.status}")
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise _failed(where, "the host answered in a content-encoding that was not asked for")
        body = bytearray()
        while (answer.length or 0) + len(body) <= self._most:
            piece = answer.read1(_PIECE)
            if not piece:
                if answer.length:
                    raise _failed(where, "it was cut short")
                return bytes(body)
            body += piece
        message = f"{where}: the picture has more than the {self._most} bytes that are taken"
        raise ApiError(400, "picture_too_large", message, param=where)


def _first_of(found: list[tuple[Any, ...]], clock: _Clock) -> socket.socket:
    refused: OSError | None = None
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(clock.seconds())
            connection.connect(address)
        except OSError as error:
            connection.close()
            refused = error
        else:
            return connection
    assert refused is not None, "a host has an address"
    raise refused


def _failed(where: str, why: str) -> ApiError:
    return ApiError(400, "invalid_value", f"{where}: the picture could not be fetched: {why}", param=where)
