"""Engines over tiny models for the tests, what `generate()` makes of the same prompts, and how the two are compared."""

from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams
from modelwright.engine.results import Result
from modelwright.engine.runner import Logits
from modelwright.engine.step import Step

TOLERANCE = 1e-4


def engine_of(model: Any, tokenizer: Any = None, **settings: Any) -> Engine:
    """Small limits that make chunks, shared steps and preemption likely, unless the test says otherwise."""
    limits = {"max_batch": 4, "token_budget": 16, "page_size": 4, "num_pages": 64}
    return Engine(model, EngineConfig(**limits | settings), tokenizer)


def greedy(new: int, **fields: Any) -> SamplingParams:
    """The best tokens, exactly so many."""
    return SamplingParams(**{"temperature": 0.0, "max_tokens": new, "min_tokens": new} | fields)


@dataclass(frozen=True)
class Expected:
    """What `generate()` adds to a prompt, and the logits ``[tokens, vocabulary]`` it took each token from."""

    tokens: tuple[int, ...]
    logits: Tensor


@torch.no_grad()
def expected(model: Any, prompt: Any, new: int, **inputs: Any) -> Expected:
    """By `generate()`, greedily, no end of sentence among the tokens."""
    ids = torch.as_tensor(prompt).view(1, -1)
    ends = {} if model.generation_config.eos_token_id is None else {"min_new_tokens": new}
    found = model.generate(
        ids,
        **{"attention_mask": torch.ones_like(ids)} | inputs,
        **ends,
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return Expected(tuple(found.sequences[0, ids.shape[1] :].tolist()), torch.cat(found.logits).float())


@dataclass
class Recorded:
    """The logits that an engine computes.

    Attributes:
        drawn: those that each sequence's tokens are drawn from, by its id and the token's number.
        prompts: those of the prompts whose own are wanted ``[tokens, vocabulary]``, by id, part after part.
    """

    drawn: dict[str, dict[int, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    prompts: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


def record(engine: Engine) -> Recorded:
    """What the engine computes from here on."""
    found, run = Recorded(), engine._runner.run

    def watched(step: Step, pictures: Any) -> Logits:
        logits = run(step, pictures)
        drawing = [sequence for chunk in step.chunks for sequence in chunk.draws]
        for sequence, row in zip(drawing, logits.drawing, strict=True):
            found.drawn[sequence.id][len(sequence.generated)] = row.float()
        for id_, rows in logits.prompts.items():
            found.prompts[id_].append(rows.float())
        return logits

    engine._runner.run = watched  # type: ignore[method-assign]
    return found


def check_equal(tokens: SequenceOf[int], logits: Mapping[int, Tensor], wanted: Expected, within: float) -> None:
    """The same tokens from the same logits."""
    found = torch.stack([logits[i] for i in range(len(wanted.tokens))])
    torch.testing.assert_close(found, wanted.logits, atol=within, rtol=0)
    assert tuple(tokens) == wanted.tokens


def check_served(
    model: Any, prompts: SequenceOf[Any], new: int = 6, within: float = TOLERANCE, **settings: Any
) -> None:
    """Let an engine and `generate()` continue the prompts, ids each, and compare."""
    engine = engine_of(model, **settings)
    recorded = record(engine)
    for prompt, result in zip(prompts, engine.generate(prompts, greedy(new)), strict=True):
        wanted = expected(model, prompt, new)
        check_equal(result.completions[0].tokens, recorded.drawn[result.request], wanted, within)
    check_idle(engine)


def tokens_of(results: SequenceOf[Result]) -> list[tuple[int, ...]]:
    """The first output of each."""
    return [result.completions[0].tokens for result in results]


def check_idle(engine: Engine) -> None:
    """Nothing is left of requests that ended: no page in use, no entry in any table."""
    scheduler = engine._scheduler
    assert not engine.has_work and not scheduler.has_work
    assert scheduler.pool.usage.used == 0
    assert not len(engine._roster) and not engine._roster._samples and not scheduler.running and not scheduler.waiting
