"""``POST /v1/completions``: text or tokens go on, with what the model thought of each where that is asked for."""

import time
from typing import Any

from msgspec import UNSET

from modelwright.engine.logprobs import TokenLogprobs
from modelwright.engine.results import Update
from modelwright.server.answering import Running
from modelwright.server.answers import new_id, prompt_logprobs_of
from modelwright.server.completion_text import Columns, CompletionText
from modelwright.server.exchange import Exchange
from modelwright.server.frames import DONE, event
from modelwright.server.live import Live
from modelwright.server.pace import Pace
from modelwright.server.prepare import Ready
from modelwright.server.routes.endpoint import Endpoint, Parts
from modelwright.server.wire.completions import CompletionChoice, CompletionReply, CompletionRequest
from modelwright.server.wire.usage import CompletionDetails, PromptDetails, Usage


class Completions(Endpoint):
    """Continues prompts."""

    async def answer(self, exchange: Exchange) -> None:
        request, model, headers = await self.asked(exchange, CompletionRequest)
        live = Live(exchange.record)
        await self.see_through(exchange, live, self._serve(exchange, request, live, model, headers))

    async def _serve(
        self, exchange: Exchange, request: CompletionRequest, live: Live, model: str, headers: dict[str, str]
    ) -> None:
        parts = self.parts
        with parts.admission.preparation():
            ready = await parts.preparation.completions(request, live, parts.salt(exchange, request.cache_salt))
            running = parts.answering.submit(ready, request, live)
        reply = _Reply(parts, request, ready, model)
        with running:
            if request.stream:
                await reply.stream(exchange, running, headers)
            else:
                await exchange.reply(await reply.whole(running), headers)


class _Reply:
    """The answer to one request: `n` choices for each prompt, in the order of the prompts."""

    def __init__(self, parts: Parts, request: CompletionRequest, ready: list[Ready], model: str):
        self._parts, self._request, self._ready = parts, request, ready
        self._n, self._texts = request.n or 1, parts.served.token_texts
        self._same: dict[str, Any] = {
            "id": new_id("cmpl-"),
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": parts.served.fingerprint,
        }
        top = request.logprobs
        self._choices = [
            CompletionText(
                each.prompt_text if request.echo else "", self._texts, top, each.prepared.params.skip_special_tokens
            )
            for each in ready
            for _ in range(self._n)
        ]
        self._prompts: dict[int, tuple[TokenLogprobs, ...]] = {}

    async def whole(self, running: Running) -> CompletionReply:
        """All of it, once it has ended."""
        said = [""] * len(self._choices)
        columns = [Columns() for _ in self._choices]
        async for piece in running.pieces():
            at, text, told = self._take(piece.prompt, piece.update)
            said[at] += text
            columns[at].extend(told)
        running.finished()
        choices = [self._choice(at, said[at], columns[at], final=True) for at in range(len(said))]
        timings = self._ready[0].meter.timings if self._request.include_timings else UNSET
        return CompletionReply(**self._same, choices=choices, usage=self._usage(), timings=timings)

    async def stream(self, exchange: Exchange, running: Running, headers: dict[str, str]) -> None:
        """All of it as it comes."""
        options = self._request.stream_options
        usage = bool(options and options.include_usage)
        continuous = bool(options and options.continuous_usage_stats)
        progress = bool(options and options.include_progress)
        await exchange.begin(headers, b"")

        def tell() -> bytes:
            return event(CompletionReply(**self._same, choices=[], progress=running.progress()))

        async with Pace(exchange, tell if progress else None) as pace:
            async for piece in running.pieces():
                at, text, columns = self._take(piece.prompt, piece.update)
                ended = piece.update.completion is not None
                if text or columns.tokens or ended:
                    choice = self._choice(at, text, columns, final=ended)
                    said = self._usage() if continuous else None if usage else UNSET
                    await pace.write(event(CompletionReply(**self._same, choices=[choice], usage=said)))
                    self._parts.metrics.frames(1)
        running.finished()
        timings = self._ready[0].meter.timings if self._request.include_timings else UNSET
        last = event(CompletionReply(**self._same, choices=[], usage=self._usage(), timings=timings)) if usage else b""
        await exchange.write(last + DONE, last=True)

    def _take(self, prompt: int, update: Update) -> tuple[int, str, Columns]:
        """Which choice an update belongs to, and what it adds to it."""
        at = prompt * self._n + update.index
        if update.prompt_logprobs is not None:
            self._prompts[prompt] = update.prompt_logprobs
        answer = self._ready[prompt].answers[update.index]
        answer.take(update)
        told = self._prompts.get(prompt) if self._request.echo else None
        text, columns = self._choices[at].take(update, self._ready[prompt].prepared.tokens, told)
        return at, text, columns

    def _choice(self, at: int, text: str, columns: Columns, final: bool) -> CompletionChoice:
        prompt, index = divmod(at, self._n)
        answer = self._ready[prompt].answers[index]
        logprobs = columns.logprobs() if self._request.logprobs is not None else None
        choice = CompletionChoice(at, text, logprobs, answer.finish_reason if final else None, answer.stop_reason)
        if final and self._request.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs_of(self._prompts.get(prompt), self._texts)
        return choice

    def _usage(self) -> Usage:
        each = [ready.usage for ready in self._ready]
        return Usage(
            sum(one.prompt_tokens for one in each),
            sum(one.completion_tokens for one in each),
            sum(one.total_tokens for one in each),
            PromptDetails(sum(one.prompt_tokens_details.cached_tokens for one in each)),
            CompletionDetails(),
        )
