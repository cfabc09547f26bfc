"""`Endpoint`, what all paths share: errors in their one form, before a stream and within it, and whoever leaves."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from modelwright.server.admission import Admission
from modelwright.server.answering import Answering
from modelwright.server.exchange import Disconnected, Exchange, TooSlow
from modelwright.server.fields import check_fields, ignored_header
from modelwright.server.frames import error_frames
from modelwright.server.live import Live, LiveRequests
from modelwright.server.metrics import Metrics
from modelwright.server.prepare import Preparation
from modelwright.server.served import Served
from modelwright.server.settings import ServerSettings
from modelwright.server.wire.chat import ChatRequest
from modelwright.server.wire.completions import CompletionRequest
from modelwright.server.wire.errors import ApiError
from modelwright.server.wire.responses import ResponsesRequest
from modelwright.server.wire.tokens import DetokenizeRequest, TokenizeRequest

Asked = TypeVar("Asked", ChatRequest, CompletionRequest, ResponsesRequest, TokenizeRequest, DetokenizeRequest)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What the paths are made of."""

    served: Served
    settings: ServerSettings
    preparation: Preparation
    admission: Admission
    answering: Answering
    live: LiveRequests
    metrics: Metrics

    def salt(self, exchange: Exchange, asked: str | None) -> str:
        """What keeps prefixes apart: the key, where keys are isolated, and the request's own salt."""
        key = exchange.key.name if self.settings.isolate_keys else ""
        return f"{key}\n{asked or ''}" if key or asked else ""

    def ignored(self, body: dict[str, Any], kind: type) -> tuple[str, ...]:
        """The fields that have no effect, which are counted."""
        ignored = check_fields(body, kind, self.settings.strict_fields)
        for name in ignored:
            self.metrics.ignored(name)
        if ignored:
            _log.info("ignored fields: %s", ", ".join(map(repr, ignored[:16])))
        return ignored


class Endpoint(ABC):
    """An ASGI application for one path."""

    def __init__(self, parts: Parts):
        self.parts = parts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(scope, receive, send, self.parts.settings)
        try:
            await self.answer(exchange)
        except Disconnected:
            return
        except ApiError as error:
            if not exchange.started:
                raise  # the guard answers
            await self._break_off(exchange, error)
        except Exception as error:
            _log.exception("request %s failed", exchange.record.request_id)
            if not exchange.started:
                raise ApiError.of(error) from error
            await self._break_off(exchange, ApiError.of(error))

    @abstractmethod
    async def answer(self, exchange: Exchange) -> None:
        """Answer one request."""

    def filled_in(self, body: dict[str, Any]) -> dict[str, Any]:
        """A body with what its clients leave out."""
        return body

    async def asked(self, exchange: Exchange, kind: type[Asked]) -> tuple[Asked, str, dict[str, str]]:
        """What the body asks, what the reply calls the model, and the header that tells of ignored fields.

        A body on its way counts for nobody's place in the queue: it may take its sender long.

        Raises:
            ApiError: there are too many requests, it is none of `kind`, or the model is not served.
        """
        parts, record = self.parts, exchange.record
        parts.admission.check()
        body = self.filled_in(await exchange.json())
        ignored = parts.ignored(body, kind)
        request = await exchange.read(body, kind)
        record.model, record.stream = parts.served.check_name(request.model), bool(getattr(request, "stream", False))
        return request, record.model, ignored_header(ignored)

    async def see_through(self, exchange: Exchange, live: Live, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` as long as the client is there; one that leaves, or takes nothing, is counted by where it was."""
        with self.parts.live.during(live):
            try:
                await exchange.while_there(work)
            except Disconnected:
                self._left(live, live.phase)
            except TooSlow:
                self._left(live, "slow_reader")
            finally:
                self.parts.admission.ended()

    async def reply_tokens(self, exchange: Exchange, request: ChatRequest, headers: dict[str, str]) -> None:
        """Say how many tokens a conversation would be read as."""
        with self.parts.admission.preparation():
            work = self.parts.preparation.count(request, Live(exchange.record))
            tokens, pictures = await exchange.while_there(work)
        reply = {"object": "response.input_tokens", "input_tokens": tokens, "picture_tokens": pictures}
        await exchange.reply(reply, headers)

    async def _break_off(self, exchange: Exchange, error: ApiError) -> None:
        """The end of a stream that has begun."""
        exchange.record.code = error.code
        self.parts.metrics.refused(error.code)
        try:
            await exchange.write(error_frames(error), last=True)
        except (Disconnected, TooSlow):
            return

    def _left(self, live: Live, where: str) -> NoReturn:
        """Count a request whose client left, or was cut off."""
        live.record.aborted = where = live.record.aborted or where
        self.parts.metrics.aborted(where, sum(meter.completion_tokens for meter in live.meters))
        raise Disconnected
