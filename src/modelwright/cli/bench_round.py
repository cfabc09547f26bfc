"""One round of a benchmark: requests that arrive in time go through an engine, and each token's time is noted."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from modelwright.engine.engine import Engine
from modelwright.engine.params import SamplingParams
from modelwright.processing.batching import ProcessedPrompt


@dataclass(frozen=True)
class Record:
    """One request of a round; times are in seconds of one clock.

    Attributes:
        prompt_tokens: the length of its prompt.
        arrived: when it was due, whether or not the engine was free to take it.
        tokens: when each of its tokens was handed out.
    """

    prompt_tokens: int
    arrived: float
    tokens: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        """From the arrival to the first token."""
        return self.tokens[0] - self.arrived

    @property
    def whole(self) -> float:
        """From the arrival to the last token."""
        return self.tokens[-1] - self.arrived

    @property
    def gaps(self) -> list[float]:
        """Between each token and the next."""
        return [after - before for before, after in zip(self.tokens, self.tokens[1:], strict=False)]

    @property
    def per_token(self) -> float | None:
        """The mean of the gaps; None where there is only one token."""
        return (self.tokens[-1] - self.tokens[0]) / (len(self.tokens) - 1) if len(self.tokens) > 1 else None


@dataclass
class Load:
    """What the engine did in a round: its steps, the tokens they computed, pages, and sequences that lost theirs."""

    steps: int = 0
    computed: int = 0
    pages_used: int = 0
    pages: int = 0
    pages_stored: int = 0
    preempted: int = 0

    def note(self, engine: Engine) -> None:
        """Take the engine's last step in."""
        assert engine.statistics is not None
        step = engine.statistics.step
        self.steps += 1
        self.computed += step.tokens
        self.pages_used = max(self.pages_used, step.pages_used)
        self.pages = step.pages_used + step.pages_cached + step.pages_free
        self.pages_stored = max(self.pages_stored, step.pages_stored)
        self.preempted += step.preempted


@dataclass(frozen=True)
class Round:
    """What a round took; `seconds` are from the first arrival to the last token."""

    records: list[Record]
    seconds: float
    load: Load


def run_round(
    engine: Engine, prompts: Sequence[ProcessedPrompt], arrivals: Sequence[float], params: SamplingParams
) -> Round:
    """Serve `prompts`, each due so many seconds after the start as `arrivals` say, in order, to their ends."""
    start, load = time.perf_counter(), Load()
    records = [Record(len(prompt), start + after) for prompt, after in zip(prompts, arrivals, strict=True)]
    served: dict[str, Record] = {}
    while len(served) < len(prompts) or engine.has_work:
        while len(served) < len(prompts) and records[len(served)].arrived <= time.perf_counter():
            place = len(served)
            served[engine.add_request(prompts[place], params)] = records[place]
        if not engine.has_work:
            time.sleep(max(0.0, records[len(served)].arrived - time.perf_counter()))
            continue
        updates, now = engine.step(), time.perf_counter()
        for update in updates:
            served[update.request].tokens.extend([now] * len(update.tokens))
        load.note(engine)
    return Round(records, max(record.tokens[-1] for record in records) - start, load)
