"""`Request`, what is asked and the samples that answer it, from the prompt to the result; it runs no model."""

import time
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modelwright.engine.logprobs import TokenLogprobs, token_logprobs
from modelwright.engine.output import FinishReason, OutputStream
from modelwright.engine.params import SamplingParams
from modelwright.engine.prompt import Prompt
from modelwright.engine.results import Completion, Result, Times, Update
from modelwright.engine.sample_row import SampleRow
from modelwright.engine.sequence import Sequence


@dataclass(eq=False)
class Sample:
    """One of a request's outputs while it grows: its place in the schedule, its draws and its text."""

    index: int
    sequence: Sequence
    row: SampleRow
    stream: OutputStream
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    error: str | None = None
    cause: Exception | None = None

    @property
    def ended(self) -> bool:
        return self.stream.finish_reason is not None

    def take(self, token: int, logprobs: TokenLogprobs | None, seconds: float) -> str:
        """Take what was drawn and give the text that it completes."""
        guide, drawn = self.row.guide, token >= 0
        if guide is None or not drawn:
            piece = self.stream.put(token)
        else:
            params, before, after = self.row.params, self.row.tokens, [*self.row.tokens, token]
            by_token = token in params.stop_token_ids and guide.may_end_by(token, before)
            ended, by_text = guide.ended(after), bool(params.stop) and guide.may_stop(after)
            piece = self.stream.put(token, guide_ended=ended, stops=(by_token, by_text))
        if drawn:
            self.tokens.append(token)
            self.times.append(seconds)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        return piece

    def completion(self) -> Completion:
        """The output, once it has ended."""
        reason = self.stream.finish_reason
        assert reason is not None, "the output goes on"
        asked = self.row.params.logprobs is not None
        return Completion(
            self.index,
            self.stream.text,
            tuple(self.tokens),
            reason,
            self.stream.stop_reason,
            tuple(self.logprobs) if asked else None,
            self.error,
            self.cause,
        )


@dataclass(eq=False)
class Request:
    """One request, and when it came, was begun and had its prompt read, in seconds of ``time.monotonic``."""

    id: str
    prompt: Prompt
    params: SamplingParams
    samples: SequenceOf[Sample]
    arrived: float = field(default_factory=time.monotonic)
    scheduled: float | None = None
    prompt_read: float | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    told: bool = False  # whether an update went out, which says what is said once

    @property
    def ended(self) -> bool:
        """Whether all its outputs have."""
        return all(sample.ended for sample in self.samples)

    @property
    def error(self) -> str | None:
        """Why it could not be finished; None where that did not happen."""
        return next((sample.error for sample in self.samples if sample.error is not None), None)

    @property
    def reads_pictures(self) -> bool:
        """Whether pictures of its prompt are to be read, or their pages to be found."""
        length = len(self.prompt.tokens)
        return bool(self.prompt.pictures) and any(
            own.sequence.computed < length for own in self.samples if not own.ended
        )

    def read_prompt(self, start: int, logits: Tensor) -> None:
        """Take the logits ``[tokens, vocabulary]`` of the prompt from token `start` on, perhaps for the second time."""
        del self.prompt_logprobs[start:]
        after = self.prompt.tokens[start + 1 : start + 1 + len(logits)]
        if after:
            ids = torch.tensor(after, device=logits.device)  # integers, whatever the type of the logits
            self.prompt_logprobs += token_logprobs(logits[: len(after)], ids, self.params.prompt_logprobs or 0)

    def take(self, sample: Sample, token: int, logprobs: TokenLogprobs | None) -> Update:
        """One drawn token of a sample, of which nothing is kept where none were asked for."""
        now = time.monotonic()
        if self.prompt_read is None:
            self.prompt_read = now
        if sample.sequence.max_tokens == 0:
            return self._update(sample, sample.stream.end(FinishReason.LENGTH))
        piece = sample.take(token, logprobs, now - self.arrived)
        drawn = (token,) if token >= 0 else ()
        return self._update(sample, piece, drawn, () if logprobs is None else (logprobs,), (now,) if drawn else ())

    def abort(self) -> list[Update]:
        """End what has not ended."""
        return self._end(FinishReason.ABORT, None, None)

    def fail(self, error: str, cause: Exception | None = None) -> list[Update]:
        """End what has not ended, because of `error`, a sentence, or what was raised."""
        return self._end(FinishReason.ERROR, error, cause)

    def _end(self, reason: FinishReason, error: str | None, cause: Exception | None) -> list[Update]:
        updates = []
        for sample in self.samples:
            if not sample.ended:
                sample.error, sample.cause = error, cause
                updates.append(self._update(sample, sample.stream.end(reason)))
        return updates

    def _update(
        self,
        sample: Sample,
        text: str,
        tokens: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprobs, ...] = (),
        drawn: tuple[float, ...] = (),
    ) -> Update:
        first, self.told = not self.told, True
        return Update(
            self.id,
            sample.index,
            text,
            tokens,
            logprobs,
            sample.completion() if sample.ended else None,
            self._prompt_logprobs if first else None,
            self.samples[0].sequence.found if first else None,
            Times(self.arrived, self.scheduled, self.prompt_read, drawn),
        )

    @property
    def _prompt_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """None where they were not asked for, and of a prompt that was not read to its end."""
        asked = self.params.prompt_logprobs is not None and self.prompt_read is not None
        return tuple(self.prompt_logprobs) if asked else None

    def result(self) -> Result:
        """Everything, once all outputs have ended."""
        asked = self.params.prompt_logprobs is not None
        return Result(
            self.id,
            self.prompt.tokens,
            tuple(sample.completion() for sample in self.samples),
            tuple(self.prompt_logprobs) if asked else None,
            tuple(tuple(sample.times) for sample in self.samples),
        )
