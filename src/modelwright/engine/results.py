"""What comes out of the engine: pieces of outputs as they grow, whole outputs, and a step in numbers."""

from dataclasses import dataclass

from modelwright.engine.logprobs import TokenLogprobs
from modelwright.engine.output import FinishReason
from modelwright.engine.step import StepStatistics


@dataclass(frozen=True)
class Times:
    """When what happened to a request, in seconds of ``time.monotonic``.

    Attributes:
        arrived: it was asked.
        scheduled: its first tokens were planned into a step; None for one that ended before.
        prompt_read: its whole prompt was, and the first token could be drawn; None before that.
        tokens: the step that drew each of the update's tokens was done.
    """

    arrived: float
    scheduled: float | None
    prompt_read: float | None
    tokens: tuple[float, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One finished output of a request.

    Attributes:
        index: which of the request's ``n``.
        text: without what ended it; empty where the engine has no tokenizer.
        tokens: all that were drawn, an end token included.
        finish_reason: stop, length, abort or error.
        stop_reason: the stop text or the id of ``stop_token_ids`` that ended it, if one did.
        logprobs: of each token, where they were asked for.
        error: why the request could not be finished, in a sentence, where that is the reason.
        cause: what was raised, where the model or a guide raised something.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: tuple[TokenLogprobs, ...] | None
    error: str | None = None
    cause: Exception | None = None


@dataclass(frozen=True)
class Update:
    """What a step added to one output; in a stream that lags, what several steps did.

    Attributes:
        request: the request's id; `index` says which of its outputs.
        text: what became certain of the text.
        tokens: what was drawn; empty where the request was aborted, or asked for none.
        logprobs: of each of them, where they were asked for.
        completion: the whole output, with its last piece.
        prompt_logprobs: of each prompt token but the first, where they were asked for: in the request's first update.
        cached_tokens: how many of the prompt's tokens were found instead of computed: in the request's first update.
        times: when the request came and was begun, and when its tokens were drawn.
    """

    request: str
    index: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    completion: Completion | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    cached_tokens: int | None = None
    times: Times | None = None


@dataclass(frozen=True)
class Result:
    """A request that is served.

    Attributes:
        request: its id.
        prompt: its token ids.
        completions: the ``n`` outputs, by index.
        prompt_logprobs: of each prompt token but the first, where they were asked for.
        token_times: for each completion, when its tokens came, in seconds after the request.
    """

    request: str
    prompt: tuple[int, ...]
    completions: tuple[Completion, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...] | None
    token_times: tuple[tuple[float, ...], ...]

    @property
    def text(self) -> str:
        """Of the first output."""
        return self.completions[0].text


@dataclass(frozen=True)
class EngineStatistics:
    """The last step: what it did, how long it took, and how many tokens it computed a second.

    Attributes:
        pictures_kept, pictures_new: of the prompts that it began with, those whose rows were there, and the others.
    """

    step: StepStatistics
    seconds: float
    pictures_kept: int = 0
    pictures_new: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Prompt tokens and drawn ones alike."""
        return self.step.tokens / self.seconds
