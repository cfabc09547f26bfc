"""What a request took, counted from the engine's updates."""

import time
from dataclasses import dataclass, field

from modelwright.engine.results import Update
from modelwright.server.metrics import Metrics, Times
from modelwright.server.wire.usage import CompletionDetails, PromptDetails, Timings, Usage


@dataclass
class Meter:
    """Counts one request.

    Attributes:
        prompt_tokens, picture_tokens: of the prompt; those that stand for pictures are among the former.
        cached_tokens: how many of them the engine found instead of computing them.
        completion_tokens: drawn so far, by all answers.
        started: when the request came, as `time.monotonic` counts.
        scheduled, read: when the engine began with it, and when the prompt was read; None before.
        first, last: when the first and the latest token were drawn; None before.
    """

    prompt_tokens: int
    picture_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    scheduled: float | None = None
    read: float | None = None
    first: float | None = None
    last: float | None = None
    _lasts: dict[int, float] = field(default_factory=dict)  # of each output

    def take(self, update: Update, metrics: Metrics) -> None:
        """Count an update."""
        if update.cached_tokens is not None:
            self.cached_tokens = update.cached_tokens
            metrics.request_started(self.prompt_tokens, update.cached_tokens)
        self.completion_tokens += len(update.tokens)
        if update.times is None:
            return
        self.scheduled, self.read = update.times.scheduled, update.times.prompt_read
        last = self._lasts.get(update.index)
        for drawn in update.times.tokens:
            if last is not None:
                metrics.token(drawn - last)
            elif self.first is None:
                self.first = drawn
                metrics.first_token(drawn - self.started)
            self._lasts[update.index] = last = drawn
        if last is not None:
            self.last = last if self.last is None else max(last, self.last)

    def finished(self, reason: str, tokens: int, metrics: Metrics) -> None:
        """Count an answer of so many tokens that has ended by itself."""
        queue = None if self.scheduled is None else self.scheduled - self.started
        prefill = None if self.scheduled is None or self.read is None else self.read - self.scheduled
        decode = None if self.first is None or self.last is None else self.last - self.first
        metrics.finished(reason, tokens, Times(queue, prefill, decode, time.monotonic() - self.started))

    def usage(self, thought_tokens: int = 0) -> Usage:
        """What it took, of whose tokens so many are thoughts'."""
        details = PromptDetails(self.cached_tokens, self.picture_tokens)
        total = self.prompt_tokens + self.completion_tokens
        return Usage(self.prompt_tokens, self.completion_tokens, total, details, CompletionDetails(thought_tokens))

    @property
    def timings(self) -> Timings:
        end = self.last or time.monotonic()
        scheduled = self.scheduled or end
        read = self.read or self.first or end
        prompt, predicted = max(read - scheduled, 1e-9), max(end - read, 1e-9)
        return Timings(
            queue_ms=1e3 * max(scheduled - self.started, 0),
            prompt_ms=1e3 * prompt,
            prompt_per_second=(self.prompt_tokens - self.cached_tokens) / prompt,
            predicted_ms=1e3 * predicted,
            predicted_per_second=self.completion_tokens / predicted,
        )
