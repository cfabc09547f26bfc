"""`Connection`, uvicorn's HTTP with limits of its own, and with errors in OpenAI's form for what is no request."""

import asyncio
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError

HEAD_BYTES = 64 * 2**10
"""Of a request's line and headers together."""
HEAD_LINES = 128
LINGER = 2.0
"""Seconds for which what a client still sends is read and thrown away, so that it sees the answer before the end."""
_CHUNKED = (b"chunked",)


@dataclass
class Connections:
    """How many there are, in all and of each address, and what is done with what they cannot ask.

    Attributes:
        refused: told the code of each error that no request came to.
    """

    settings: ServerSettings
    refused: Callable[[str], None] = lambda code: None
    all: int = 0
    of_address: Counter[str] = field(default_factory=Counter)

    def protocol(self) -> Any:
        """What uvicorn makes its connections of."""
        return functools.partial(Connection, limits=self)

    def enter(self, address: str | None) -> bool:
        """Count a connection; False where there are too many."""
        self.all += 1
        if address is not None:
            self.of_address[address] += 1
        most = self.settings.max_connections_per_address
        return self.all <= self.settings.max_connections and (address is None or self.of_address[address] <= most)

    def leave(self, address: str | None) -> None:
        self.all -= 1
        if address is not None:
            self.of_address[address] -= 1
            if not self.of_address[address]:
                del self.of_address[address]


class Connection(HttpToolsProtocol):
    """One connection.

    What is inside the application finds ``cut`` in a scope's state where we ended it, and by ``unread`` whether a part
    of the request is still to come.
    """

    def __init__(self, *args: Any, limits: Connections, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._limits, self._settings = limits, limits.settings
        self._address: str | None = None
        self._head = 0  # bytes since the last request was complete
        self._in_head = True
        self._error: ApiError | None = None
        self._deaf = False  # what comes is thrown away
        self._timer: asyncio.TimerHandle | None = None
        self._slow: asyncio.TimerHandle | None = None
        self._left_to_write = 0

    # what the transport calls

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._address = self.client[0] if self.client else None
        if self._limits.enter(self._address):
            self._await_head()
            return
        if self._limits.all > 2 * self._settings.max_connections:
            transport.abort()
            return
        self._answer(ApiError(503, "too_many_connections", "there are too many connections", headers=_SOON))

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.leave(self._address)
        for timer in (self._timer, self._slow):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._deaf:
            return
        if self._in_head:
            self._head += len(data)
            if self._timer is None:
                self._await_head()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # nothing else than HTTP is spoken here
            self._end_after_this()
        except httptools.HttpParserError:
            self._answer(self._error or ApiError(400, "invalid_http", "this is no request in HTTP/1.1"))
        else:
            if self._in_head and self._head > HEAD_BYTES:
                self._answer(_head_too_large())

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    # what the parser calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > HEAD_LINES:
            self._raise(_head_too_large())

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > HEAD_BYTES:
            self._raise(_head_too_large())
        names = [name for name, _ in self.headers]
        coded = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if coded and (
            b"content-length" in names or tuple(coded) != _CHUNKED or self._parser.get_http_version() == "1.0"
        ):
            self._raise(
                ApiError(400, "invalid_http", "transfer-encoding must be chunked, once, and without content-length")
            )
        if self._parser.should_upgrade() and (coded or names.count(b"content-length")):
            self._raise(
                ApiError(400, "invalid_http", "HTTP/1.1 alone is spoken here: a body must come without Upgrade")
            )
        self._in_head, self._head = False, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().on_headers_complete()
        scope, cycle = cast(Any, self.scope), cast(Any, self.cycle)
        scope["state"]["unread"] = lambda: cycle.more_body
        if self._parser.get_http_version() == "1.0":  # which knows no chunks: a stream ends with its connection
            cycle.chunked_encoding, cycle.expected_content_length = False, _AnyLength()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True

    def on_response_complete(self) -> None:
        unread = self.cycle is not None and self.cycle.more_body and not self.pipeline
        if not self.transport.is_closing() and unread:  # the answer came before all of the body
            self.server_state.total_requests += 1
            self._linger()
            return
        super().on_response_complete()

    # what is done then

    @property
    def _parser(self) -> Any:
        """Until the connection is lost."""
        return self.parser

    def _raise(self, error: ApiError) -> None:
        self._error = error
        raise error

    def _answer(self, error: ApiError) -> None:
        """Say what is wrong, unless an answer is on its way, and take nothing more."""
        self._limits.refused(error.code)
        if self.cycle is not None and not self.cycle.response_complete:
            if self.pipeline or self.cycle.response_started or not self.cycle.more_body:
                self._end_after_this()
                return
            self.cycle.disconnected = True  # its body is what is wrong
            self.cycle.message_event.set()
        body = error.body()
        lines = [STATUS_LINE[error.status], b"content-type: application/json\r\nconnection: close\r\n"]
        lines += [f"{name}: {value}\r\n".encode("latin-1") for name, value in error.headers.items()]
        lines += [b"content-length: %d\r\n\r\n" % len(body), body]
        self.transport.write(b"".join(lines))
        self._linger()

    def _end_after_this(self) -> None:
        """Finish the answer that is on its way; a request that is not here in whole has then ended, too."""
        self._deaf = True
        for cycle in (self.cycle, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None:
                cycle.keep_alive = False
        if self.cycle is not None and self.cycle.more_body:
            self.cycle.more_body = False
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _linger(self) -> None:
        """End the connection softly: ending it at once, with something unread, could lose the answer on its way."""
        self._deaf = True
        self.flow.resume_reading()
        if self._timer is not None:
            self._timer.cancel()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._timer = self.loop.call_later(LINGER, self.transport.abort)
        else:
            self.transport.close()

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self._settings.body_timeout, self._head_is_late)

    def _head_is_late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._head:
            self._answer(
                ApiError(408, "body_timeout", f"a request must be here within {self._settings.body_timeout:g} s")
            )
        else:
            self.transport.close()

    def _watch_writing(self) -> None:
        self._left_to_write = self.transport.get_write_buffer_size()
        self._slow = self.loop.call_later(self._settings.write_timeout, self._writing_is_slow)

    def _writing_is_slow(self) -> None:
        """Cut off a client that has taken nothing for all this time."""
        if self.transport.get_write_buffer_size() < self._left_to_write:
            self._watch_writing()
            return
        if self.cycle is not None:
            state = self.cycle.scope.setdefault("state", {})
            state["cut"] = "slow_reader"
            if "record" in state:
                state["record"].aborted = "slow_reader"
        self.transport.abort()


class _AnyLength(int):
    """The length of an answer that says none: no part of it is too long, and no end too early."""

    def __lt__(self, other: object) -> bool:
        return False

    def __sub__(self, other: object) -> Self:
        return self

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


_SOON = {"retry-after": "1"}


def _head_too_large() -> ApiError:
    return ApiError(
        431,
        "headers_too_large",
        f"a request's line and headers must have at most {HEAD_BYTES} bytes in {HEAD_LINES} lines",
    )
