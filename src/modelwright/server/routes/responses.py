"""``/v1/responses``: the same answers in OpenAI's later form, with events, and kept where the server is told so."""

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from modelwright.engine.output import FinishReason
from modelwright.server.answering import Running
from modelwright.server.answers import new_id
from modelwright.server.exchange import Exchange
from modelwright.server.frames import DONE
from modelwright.server.live import Live
from modelwright.server.pace import Pace
from modelwright.server.prepare import Ready
from modelwright.server.response_input import chat_request, with_types
from modelwright.server.response_items import Items, Told
from modelwright.server.response_store import ResponseStore, missing
from modelwright.server.routes.endpoint import Endpoint, Parts
from modelwright.server.wire.chat import ChatRequest
from modelwright.server.wire.errors import ApiError
from modelwright.server.wire.responses import ResponsesRequest


class ResponsesEndpoint(Endpoint):
    """What the paths of responses share.

    Args:
        store: where they are kept.
        running: those that are being answered, by key and id.
    """

    def __init__(self, parts: Parts, store: ResponseStore, running: dict[tuple[str, str], "_Reply"]):
        super().__init__(parts)
        self.store, self.running = store, running

    def filled_in(self, body: dict[str, Any]) -> dict[str, Any]:
        return with_types(body)

    def conversation(self, exchange: Exchange, request: ResponsesRequest) -> tuple[ChatRequest, list[dict[str, Any]]]:
        """A request as chat, and its messages without the instructions; they go on from those that are kept."""
        before: list[dict[str, Any]] = []
        if request.previous_response_id is not None:
            kept = self.store.get(exchange.key.name, request.previous_response_id, "previous_response_id")
            before = kept.messages
        return chat_request(request, before)


class Responses(ResponsesEndpoint):
    """``POST /v1/responses``."""

    async def answer(self, exchange: Exchange) -> None:
        request, model, headers = await self.asked(exchange, ResponsesRequest)
        if request.store and not self.store.most:
            said = "store needs a server that is started with --responses-store N; leave it out"
            raise ApiError(400, "unsupported_parameter", said, param="store")
        live = Live(exchange.record)
        await self.see_through(exchange, live, self._serve(exchange, request, live, model, headers))

    async def _serve(
        self, exchange: Exchange, request: ResponsesRequest, live: Live, model: str, headers: dict[str, str]
    ) -> None:
        parts, key = self.parts, exchange.key.name
        chat, messages = self.conversation(exchange, request)
        with parts.admission.preparation():
            ready = await parts.preparation.chat(chat, live, parts.salt(exchange, request.cache_salt))
            running = parts.answering.submit([ready], chat, live)
        stored = bool(self.store.most) and request.store is not False
        reply = _Reply(parts, request, ready, model, running, stored)
        self.running[key, reply.id] = reply
        try:
            with running:
                if request.stream:
                    await reply.stream(exchange, headers)
                else:
                    response = await reply.whole()
                    await exchange.reply(response, headers)
            if stored:
                self.store.put(key, reply.response(), [*messages, *reply.messages()])
        finally:
            del self.running[key, reply.id]


class StoredResponse(ResponsesEndpoint):
    """``GET`` and ``DELETE /v1/responses/{id}``."""

    async def answer(self, exchange: Exchange) -> None:
        id_, key = exchange.scope["path_params"]["id"], exchange.key.name
        if exchange.scope["method"] == "DELETE":
            self.store.drop(key, id_)
            await exchange.reply({"id": id_, "object": "response", "deleted": True})
        else:
            await exchange.reply(self.store.get(key, id_).response)


class CancelResponse(ResponsesEndpoint):
    """``POST /v1/responses/{id}/cancel``: ends one that is being answered."""

    async def answer(self, exchange: Exchange) -> None:
        id_, key = exchange.scope["path_params"]["id"], exchange.key.name
        reply = self.running.get((key, id_))
        if reply is not None:
            reply.cancel()
            await exchange.reply(reply.response())
            return
        try:
            self.store.get(key, id_)
        except ApiError as error:
            raise missing(id_, self.store.most) from error
        raise ApiError(400, "invalid_value", f"response {id_[:80]!r} has ended, so that nothing is left to cancel")


class ResponseTokens(ResponsesEndpoint):
    """``POST /v1/responses/input_tokens``: what a request would read."""

    async def answer(self, exchange: Exchange) -> None:
        request, _, headers = await self.asked(exchange, ResponsesRequest)
        chat, _ = self.conversation(exchange, request)
        await self.reply_tokens(exchange, chat, headers)


class _Reply:
    """One response."""

    def __init__(
        self, parts: Parts, request: ResponsesRequest, ready: Ready, model: str, running: Running, stored: bool
    ):
        self.id, self._created = new_id("resp_"), int(time.time())
        self._parts, self._request, self._ready, self._model = parts, request, ready, model
        self._running, self._stored = running, stored
        self._answer = ready.answers[0]
        self._items = Items(ready.grounds, self._answer.tells)
        self._status, self._error, self._number = "in_progress", None, 0

    def cancel(self) -> None:
        """End it, with what was said so far."""
        if self._status == "in_progress":
            self._status = "cancelled"
            self._running.abort()

    async def whole(self) -> dict[str, Any]:
        """All of it, once it has ended."""
        async for _ in self._told():
            pass
        return self.response()

    async def stream(self, exchange: Exchange, headers: dict[str, str]) -> None:
        """All of it as it comes."""
        first = [{"type": f"response.{each}", "response": self.response()} for each in ("created", "in_progress")]
        await exchange.begin(headers, self._frames(first))
        try:
            async with Pace(exchange) as pace:
                async for told in self._told():
                    if told:
                        await pace.write(self._frames(told))
                        self._parts.metrics.frames(len(told))
        except ApiError as error:
            self._status, self._error = "failed", {"code": "server_error", "message": error.message}
            exchange.record.code = error.code
            self._parts.metrics.refused(error.code)
            ended = self._items.finish("incomplete") if self._items.output else []
            failed = {"type": "response.failed", "response": self.response()}
            await exchange.write(self._frames([*ended, failed]) + DONE, last=True)
            return
        end = "completed" if self._status == "completed" else "incomplete"  # what was cancelled has no event of its own
        last = {"type": f"response.{end}", "response": self.response()}
        await exchange.write(self._frames([last]) + DONE, last=True)

    async def _told(self) -> AsyncIterator[list[Told]]:
        """The events of each update."""
        try:
            async for piece in self._running.pieces():
                if self._status == "cancelled":
                    break
                yield self._items.take(*self._answer.take(piece.update))
        except ApiError:
            if self._status != "cancelled":
                raise
        completion = self._answer.completion
        if self._status == "in_progress":
            cut = completion is not None and completion.finish_reason is FinishReason.LENGTH
            self._status = "incomplete" if cut else "completed"
            self._running.finished()
        yield self._items.finish("completed" if self._status == "completed" else "incomplete")

    def _frames(self, told: list[Told]) -> bytes:
        found = b""
        for each in told:
            found += b"event: %s\ndata: " % each["type"].encode()
            found += msgspec.json.encode({**each, "sequence_number": self._number}) + b"\n\n"
            self._number += 1
        return found

    def messages(self) -> list[dict[str, Any]]:
        """The answer as messages, for the request that goes on with it."""
        said = "".join(item["content"][0]["text"] for item in self._items.output if item["type"] == "message")
        calls = [
            {
                "id": item["call_id"],
                "type": "function",
                "function": {"name": item["name"], "arguments": item["arguments"]},
            }
            for item in self._items.output
            if item["type"] == "function_call"
        ]
        return [
            {"role": "assistant", "content": said or None if calls else said} | ({"tool_calls": calls} if calls else {})
        ]

    def response(self) -> dict[str, Any]:
        """It as it stands."""
        request, ended = self._request, self._status not in ("in_progress",)
        usage = self._ready.usage
        text = request.text.format if request.text is not None else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if self._status == "completed" else None,
            "status": self._status,
            "background": False,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": None,
            "model": self._model,
            "output": msgspec.to_builtins(self._items.output) if ended else [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "prompt_cache_key": None,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": None,
            "service_tier": "default",
            "store": self._stored,
            "temperature": request.temperature,
            "text": {"format": text or {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": request.top_p,
            "presence_penalty": request.presence_penalty or 0.0,
            "frequency_penalty": request.frequency_penalty or 0.0,
            "truncation": "disabled",
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                    "cache_write_tokens": usage.prompt_tokens_details.cache_write_tokens,
                    "picture_tokens": usage.prompt_tokens_details.picture_tokens,
                },
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": usage.completion_tokens_details.reasoning_tokens},
                "total_tokens": usage.total_tokens,
            }
            if ended
            else None,
            "user": None,
            "metadata": request.metadata or {},
        }
