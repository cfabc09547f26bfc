"""``POST /v1/chat/completions`` and the count of what such a request reads."""

import time

from msgspec import UNSET

from modelwright.server.answering import Piece, Running
from modelwright.server.answers import Answer, choice_of, new_id, prompt_logprobs_of
from modelwright.server.events import Event
from modelwright.server.exchange import Exchange
from modelwright.server.frames import DONE, ChatFrames
from modelwright.server.live import Live
from modelwright.server.pace import Pace
from modelwright.server.prepare import Ready
from modelwright.server.routes.endpoint import Endpoint
from modelwright.server.wire import chat
from modelwright.server.wire.chat import ChatRequest


class Chat(Endpoint):
    """Continues a conversation."""

    async def answer(self, exchange: Exchange) -> None:
        request, model, headers = await self.asked(exchange, ChatRequest)
        live = Live(exchange.record)
        await self.see_through(exchange, live, self._serve(exchange, request, live, model, headers))

    async def _serve(
        self, exchange: Exchange, request: ChatRequest, live: Live, model: str, headers: dict[str, str]
    ) -> None:
        parts = self.parts
        with parts.admission.preparation():
            salt = parts.salt(exchange, request.cache_salt)
            ready = await parts.preparation.chat(request, live, salt)
            running = parts.answering.submit([ready], request, live)
        reply = _Reply(self, request, ready, model)
        with running:
            if request.stream:
                await reply.stream(exchange, running, headers)
            else:
                await exchange.reply(await reply.whole(running), headers)


class _Reply:
    """The answer to one request."""

    def __init__(self, endpoint: Endpoint, request: ChatRequest, ready: Ready, model: str):
        self._parts, self._request, self._ready, self._model = endpoint.parts, request, ready, model
        self._id, self._created = new_id("chatcmpl-"), int(time.time())
        self._texts = self._parts.served.token_texts

    async def whole(self, running: Running) -> chat.ChatReply:
        """All of it, once it has ended."""
        events: list[list[Event]] = [[] for _ in self._ready.answers]
        told: list[list[chat.TokenLogprob]] = [[] for _ in self._ready.answers]
        prompt_logprobs = UNSET
        async for piece in running.pieces():
            update = piece.update
            found, logprobs = self._ready.answers[update.index].take(update)
            events[update.index] += found
            told[update.index] += logprobs
            if update.prompt_logprobs is not None:
                prompt_logprobs = prompt_logprobs_of(update.prompt_logprobs, self._texts)
        running.finished()
        asked = self._request.logprobs
        choices = [
            choice_of(answer, events[at], told[at] if asked else None, self._ready.grounds)
            for at, answer in enumerate(self._ready.answers)
        ]
        return chat.ChatReply(
            id=self._id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._parts.served.fingerprint,
            choices=choices,
            usage=self._ready.usage,
            prompt_logprobs=prompt_logprobs,
            timings=self._ready.meter.timings if self._request.include_timings else UNSET,
        )

    async def stream(self, exchange: Exchange, running: Running, headers: dict[str, str]) -> None:
        """All of it as it comes."""
        request, meter, metrics = self._request, self._ready.meter, self._parts.metrics
        options = request.stream_options
        usage = bool(options and options.include_usage)
        continuous = bool(options and options.continuous_usage_stats)
        progress = bool(options and options.include_progress)
        frames = ChatFrames(self._id, self._created, self._model, self._parts.served.fingerprint, usage, continuous)
        await exchange.begin(headers, b"".join(frames.role(answer.index) for answer in self._ready.answers))
        tell = (lambda: frames.progress(running.progress())) if progress else None
        async with Pace(exchange, tell) as pace:
            async for piece in running.pieces():
                found = self._frames(frames, piece)
                if found:
                    await pace.write(found)
                    metrics.frames(1)
        running.finished()
        timings = meter.timings if request.include_timings else UNSET
        last = frames.usage(self._ready.usage, timings) if usage else b""
        await exchange.write(last + DONE, last=True)

    def _frames(self, frames: ChatFrames, piece: Piece) -> bytes:
        update, meter, found = piece.update, self._ready.meter, b""
        if update.prompt_logprobs is not None:
            found += frames.prompt(update.index, prompt_logprobs_of(update.prompt_logprobs, self._texts))
        answer: Answer = self._ready.answers[update.index]
        events, told = answer.take(update)
        found += frames.pieces(
            update.index, events, told if self._request.logprobs else None, lambda: self._ready.usage
        )
        if answer.completion is not None:
            timings = meter.timings if self._request.include_timings else UNSET
            found += frames.finish(update.index, answer.finish_reason, answer.stop_reason, self._ready.usage, timings)
        return found


class ChatTokens(Endpoint):
    """``POST /v1/chat/completions/input_tokens``: what a request would read."""

    async def answer(self, exchange: Exchange) -> None:
        request, _, headers = await self.asked(exchange, ChatRequest)
        await self.reply_tokens(exchange, request, headers)
