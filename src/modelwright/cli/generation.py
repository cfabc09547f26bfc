"""One answer: asked of the engine, handed on piece by piece, timed; printing is left to the caller."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modelwright.cli.conversation import Prompt
from modelwright.cli.interrupt import Interrupt
from modelwright.engine.detokenize import Detokenizer
from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it took.

    Attributes:
        text: without end-of-sentence and padding tokens; grounding tokens are kept.
        tokens: new tokens, the end of sentence among them.
        first_token_seconds: from the start to the first token; None when there was none.
        seconds: from the start to the end.
        tokens_per_second: after the first token; None with fewer than two.
        interrupted: Ctrl-C ended it early.
        reused: how many of the prompt's tokens the engine found in its pages instead of computing them.
    """

    text: str
    tokens: int
    first_token_seconds: float | None
    seconds: float
    tokens_per_second: float | None
    interrupted: bool = False
    reused: int = 0


def answer(
    engine: Engine, tokenizer: Any, prompt: Prompt, params: SamplingParams, emit: Callable[[str], None]
) -> Answer:
    """Let `engine`, which serves nobody else, continue ``prompt``; ``emit`` gets the text piece by piece.

    Ctrl-C ends the answer after the step that is being computed; a second one is raised.

    Raises:
        RequestError: the prompt leaves no room for an answer in the model's context.
    """
    marks = {tokenizer.bos_token_id, tokenizer.pad_token_id} - {None}
    shown = _Shown(tokenizer, marks | {*(params.eos_token_ids or ())}, emit)
    start, times, computed = time.perf_counter(), [], 0
    with Interrupt() as stop:
        request = engine.add_request(prompt.inputs, params)
        try:
            while engine.serves(request) and not stop.asked:
                updates = engine.step()
                if not times and engine.statistics is not None:
                    computed += engine.statistics.step.tokens
                drawn = [token for update in updates for token in update.tokens]
                times += [time.perf_counter()] * len(drawn)
                shown.feed(drawn)
            interrupted = engine.serves(request)
        finally:
            engine.abort(request)
    shown.finish()
    seconds = time.perf_counter() - start
    first = times[0] - start if times else None
    reused = prompt.tokens - computed if times else 0
    return Answer(shown.text.rstrip(), len(times), first, seconds, _rate(times), interrupted, reused)


class _Shown:
    """The text so far, handed on as it grows; white space at its beginning is left out."""

    def __init__(self, tokenizer: Any, hidden: set[int], emit: Callable[[str], None]):
        self.text = ""
        self._emit = emit
        self._detokenizer = Detokenizer(tokenizer, hidden=hidden, skip_special_tokens=False, leading_space=False)

    def feed(self, tokens: list[int]) -> None:
        self._show(self._detokenizer.feed(tokens))

    def finish(self) -> None:
        self._show(self._detokenizer.finish())

    def _show(self, piece: str) -> None:
        self.text += piece
        if piece:
            self._emit(piece)


def _rate(times: list[float]) -> float | None:
    """Tokens a second after the first."""
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return (len(times) - 1) / (times[-1] - times[0])
