"""The sampler: one token for each row of a batch, however their settings differ; it knows no model and keeps no state.

The steps and their order are those of transformers' processors: `penalties` (bias, penalties, prohibitions, guides),
then temperature and `warpers` (top-k, top-p, min-p) for the rows that draw. A row that takes the best token costs an
argmax.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelwright.engine.logprobs import TokenLogprobs, token_logprobs
from modelwright.engine.noise import streams_of
from modelwright.engine.penalties import adjust
from modelwright.engine.refusals import NOTHING_ALLOWED
from modelwright.engine.sample_row import SampleRow
from modelwright.engine.warpers import draw, draw_any
from modelwright.errors import RequestFailed
from modelwright.ops.limits import Limits

NO_TOKEN = -1
"""Stands where nothing could be drawn: all tokens of the row are forbidden, or its scores are not finite."""


@dataclass(frozen=True)
class Sampled:
    """What a step drew.

    Attributes:
        tokens: ``[S]`` int64, on the logits' device; `NO_TOKEN` where nothing could be drawn.
        logprobs: for each row, None where it did not ask or nothing was drawn.
    """

    tokens: Tensor
    logprobs: tuple[TokenLogprobs | None, ...]


@torch.inference_mode()
def sample(logits: Tensor, rows: Sequence[SampleRow]) -> Sampled:
    """Draw the next token of each row from its logits ``[S, V]``, which stay as they are.

    A row's token depends on its own logits, settings, key and position only: not on the rows beside it.
    """
    scores = adjust(logits, rows)
    drawing = [i for i, row in enumerate(rows) if not row.params.is_greedy]
    if len(drawing) == len(rows):
        tokens = _draw(scores.float(), rows)
    else:
        tokens = scores.float().argmax(-1)  # torch's argmax of bf16 takes five times as long
        if drawing:
            chosen = torch.tensor(drawing, device=scores.device)
            tokens[chosen] = _draw(scores[chosen].float(), [rows[i] for i in drawing])
    # A score that is NaN or infinite is the best of its row, whichever way it is drawn, unless it was forbidden.
    possible = scores.gather(1, tokens[:, None])[:, 0].isfinite()
    if scores is not logits:
        possible &= logits.amax(-1).isfinite()
    tokens = torch.where(possible, tokens, NO_TOKEN)
    return Sampled(tokens, _logprobs(logits, tokens, rows))


def sample_each(logits: Tensor, rows: Sequence[SampleRow]) -> Sampled:
    """:func:`sample` row by row: sums over the vocabulary too are those that a row has alone."""
    if len(rows) < 2:
        return sample(logits, rows)
    each = [sample(logits[i : i + 1].clone(), [row]) for i, row in enumerate(rows)]
    return Sampled(torch.cat([one.tokens for one in each]), tuple(one.logprobs[0] for one in each))


def fault_of(logits: Tensor, row: SampleRow) -> str:
    """Why `NO_TOKEN` stands where the next token of `row` was to be drawn from logits ``[V]``."""
    if not logits.amax().isfinite():
        return str(RequestFailed.of_scores(logits.dtype, bool(logits.isnan().any())))
    if row.fault is not None:
        return row.fault
    if row.guide is not None and row.guide.error:
        return f"the guide cannot be followed further: {row.guide.error.splitlines()[0]}"
    return NOTHING_ALLOWED


def _draw(scores: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """One token for each row, none of them greedy: scores ``[R, V]`` float32 -> ``[R]``."""
    device = scores.device
    temperatures = torch.tensor([row.params.temperature for row in rows], dtype=torch.float32, device=device)
    scores = scores / temperatures[:, None]
    streams = streams_of([(row.key, row.position) for row in rows], device)
    limits = [(row.params.top_k, row.params.top_p, row.params.min_p) for row in rows]
    limited = [i for i, (top_k, top_p, min_p) in enumerate(limits) if top_k > 0 or top_p < 1 or min_p > 0]
    if not limited:
        return draw_any(scores, streams)
    if len(limited) == len(rows):
        return draw(scores, Limits.of(limits, device), streams)
    chosen = torch.tensor(limited, device=device)
    others = torch.tensor(sorted({*range(len(rows))} - {*limited}), device=device)
    tokens = torch.empty_like(streams)
    tokens[chosen] = draw(scores[chosen], Limits.of([limits[i] for i in limited], device), streams[chosen])
    tokens[others] = draw_any(scores[others], streams[others])
    return tokens


def _logprobs(logits: Tensor, tokens: Tensor, rows: Sequence[SampleRow]) -> tuple[TokenLogprobs | None, ...]:
    """Rows that ask are looked at together; each gets as many alternatives as it asked for."""
    asking = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    if not asking:
        return (None,) * len(rows)
    drawn = tokens.tolist()
    asking = [i for i in asking if drawn[i] != NO_TOKEN]
    found: list[TokenLogprobs | None] = [None] * len(rows)
    for count in {rows[i].params.logprobs for i in asking}:
        same = [i for i in asking if rows[i].params.logprobs == count]
        chosen = torch.tensor(same, device=logits.device)
        for i, logprobs in zip(same, token_logprobs(logits[chosen], tokens[chosen], count or 0), strict=True):
            found[i] = logprobs
    return tuple(found)
