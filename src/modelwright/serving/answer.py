"""One answer of an engine that serves nobody else: handed on piece by piece, timed, and ended early when asked to."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from modelwright.engine.engine import Engine
from modelwright.engine.output import FinishReason
from modelwright.engine.params import SamplingParams
from modelwright.engine.results import Completion
from modelwright.errors import RequestFailed
from modelwright.processing.batching import ProcessedPrompt


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it took.

    Attributes:
        text: without end-of-sentence and padding tokens, and without white space around it; grounding tokens are kept.
        tokens: new tokens, the end of sentence among them.
        first_token_seconds: from the start to the first token; None when there was none.
        seconds: from the start to the end.
        tokens_per_second: after the first token; None with fewer than two.
        interrupted: it was ended early.
        reused: how many of the prompt's tokens the engine found in its pages instead of computing them.
        said: the text with the white space around it, as the conversation goes on with it.
        finish_reason: why it ended: at an end token or text, at its length, or because it was ended early.
    """

    text: str
    tokens: int
    first_token_seconds: float | None
    seconds: float
    tokens_per_second: float | None
    interrupted: bool = False
    reused: int = 0
    said: str = ""
    finish_reason: FinishReason = FinishReason.STOP


def answer(
    engine: Engine,
    prompt: ProcessedPrompt,
    params: SamplingParams,
    emit: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> Answer:
    """Let `engine`, which has a tokenizer and serves nobody else, continue ``prompt``.

    Args:
        emit: gets the text piece by piece, without white space at its beginning.
        stopped: asked before each step whether the answer is to end early.

    Raises:
        RequestError: the prompt leaves no room for an answer in the model's context.
        RequestFailed: the answer could not be finished.
    """
    shown = _Shown(emit)
    start, times, computed = time.perf_counter(), [], 0
    completion: Completion | None = None
    request = engine.add_request(prompt, params)
    try:
        while engine.serves(request) and not stopped():
            updates = engine.step()
            if not times and engine.statistics is not None:
                computed += engine.statistics.step.tokens
            for update in updates:
                if update.completion is not None and update.completion.error is not None:
                    raise RequestFailed(update.completion.error)
                times += [time.perf_counter()] * len(update.tokens)
                shown.add(update.text)
                completion = update.completion or completion
        interrupted = engine.serves(request)
    finally:
        rest = engine.abort(request)
    for update in rest:
        shown.add(update.text)
        completion = update.completion or completion
    seconds = time.perf_counter() - start
    first = times[0] - start if times else None
    reused = len(prompt) - computed if times else 0
    reason = FinishReason.ABORT if completion is None else completion.finish_reason
    text, rate = shown.text.rstrip(), _rate(times)
    return Answer(text, len(times), first, seconds, rate, interrupted, reused, shown.said, reason)


class _Shown:
    """The text so far, handed on as it grows."""

    def __init__(self, emit: Callable[[str], None]):
        self.text = self.said = ""
        self._emit = emit

    def add(self, piece: str) -> None:
        self.said += piece
        piece = piece if self.text else piece.lstrip()
        self.text += piece
        if piece:
            self._emit(piece)


def _rate(times: list[float]) -> float | None:
    """Tokens a second after the first."""
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return (len(times) - 1) / (times[-1] - times[0])
