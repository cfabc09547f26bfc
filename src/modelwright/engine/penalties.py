"""Bias, penalties and prohibitions on scores, before temperature; only rows that ask for something are touched.

The order is transformers': bias, repetition penalty, bad words, least length, then guides. OpenAI's presence and
frequency penalties, which transformers lacks, follow the repetition penalty, as in vLLM.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modelwright.configs.limits import LARGEST_FLOAT
from modelwright.engine.sample_row import SampleRow


def adjust(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """logits ``[S, V]`` of as many rows -> scores ``[S, V]`` in float32; `logits` itself where no row asks for more."""
    if not any(map(_asks, rows)):
        return logits
    scores = logits.to(torch.float32, copy=True)
    _add_bias(scores, rows)
    _penalise_repetition(scores, rows)
    _penalise_occurrence(scores, rows)
    _forbid(scores, rows)
    _follow_guides(scores, rows)
    return scores


def _asks(row: SampleRow) -> bool:
    params = row.params
    return bool(
        row.guide
        or row.bad_words
        or params.logit_bias
        or params.repetition_penalty != 1
        or params.presence_penalty
        or params.frequency_penalty
        or row.position < params.min_tokens
    )


def _add_bias(scores: Tensor, rows: Sequence[SampleRow]) -> None:
    for i, row in enumerate(rows):
        if row.params.logit_bias:
            ids, biases = (part.to(scores.device) for part in row.bias)
            scores[i, ids] += biases


def _penalise_repetition(scores: Tensor, rows: Sequence[SampleRow]) -> None:
    """score / penalty where it is positive, score * penalty where it is negative (Keskar et al. 2019, 1909.05858)."""
    vocabulary = scores.shape[-1]
    asking = [(i, row) for i, row in enumerate(rows) if row.params.repetition_penalty != 1]
    if not asking:
        return
    ids = [_tokens_seen(row) for _, row in asking]
    ids = [seen[seen < vocabulary] for seen in ids]  # a prompt may hold ids that the model has no score for
    lengths = torch.tensor([len(seen) for seen in ids])
    numbers = torch.tensor([i for i, _ in asking]).repeat_interleave(lengths).to(scores.device)
    least = 1 / LARGEST_FLOAT  # below it a float32 would be 0 in the end
    penalties = torch.tensor([max(row.params.repetition_penalty, least) for _, row in asking], dtype=torch.float32)
    penalty = penalties.repeat_interleave(lengths).to(scores.device)
    places = numbers, torch.cat(ids).to(scores.device)
    old = scores[places]
    scores[places] = torch.where(old < 0, old * penalty, old / penalty).clamp(max=LARGEST_FLOAT)


def _tokens_seen(row: SampleRow) -> Tensor:
    """The ids in prompt or output, those in both twice: a place that is written twice gets the same value."""
    row.history.read(row.tokens, row.prompt_length)
    assert row.history.prompt is not None
    return torch.cat([row.history.prompt, torch.tensor([*row.history.counts], dtype=torch.int64)])


def _penalise_occurrence(scores: Tensor, rows: Sequence[SampleRow]) -> None:
    """score - count * frequency_penalty - (count > 0) * presence_penalty (OpenAI's API reference)."""
    entries = []
    for i, row in enumerate(rows):
        presence, frequency = row.params.presence_penalty, row.params.frequency_penalty
        if presence or frequency:
            row.history.read(row.tokens, row.prompt_length)
            entries += [(i, id_, frequency * count + presence) for id_, count in row.history.counts.items()]
    if entries:
        numbers, ids, penalties = zip(*entries, strict=True)
        scores[_on(scores, numbers), _on(scores, ids)] -= _on(scores, penalties, torch.float32)


def _forbid(scores: Tensor, rows: Sequence[SampleRow]) -> None:
    """The last token of each bad word whose other tokens stand at the end, and the ends while it is too early."""
    entries = []
    for i, row in enumerate(rows):
        entries += [(i, word[-1]) for word in row.bad_words if _ends_with(row.tokens, word[:-1])]
        if row.position < row.params.min_tokens:
            entries += [(i, id_) for id_ in row.ends if id_ < scores.shape[-1]]
    if entries:
        numbers, ids = zip(*entries, strict=True)
        scores[_on(scores, numbers), _on(scores, ids)] = -torch.inf


def _ends_with(tokens: Sequence[int], part: tuple[int, ...]) -> bool:
    return not part or tuple(tokens[-len(part) :]) == part


def _follow_guides(scores: Tensor, rows: Sequence[SampleRow]) -> None:
    """Forbid what a row's guide does not allow; ids beyond its mask are padding of the vocabulary, and forbidden."""
    vocabulary = scores.shape[-1]
    for i, row in enumerate(rows):
        allowed = _allowed(row)
        if allowed is not None:
            shared = allowed[:vocabulary].to(scores.device)
            scores[i, : len(shared)].masked_fill_(~shared, -torch.inf)
            scores[i, len(shared) :] = -torch.inf


def _allowed(row: SampleRow) -> Tensor | None:
    """What a row's guide allows; nothing, where following it failed, which is this row's fault alone."""
    if row.guide is None:
        return None
    try:
        return row.guide.allowed(row.tokens)
    except Exception as error:  # of a parser that somebody's grammar drives
        row.fault = f"the guide failed: {type(error).__name__}: {error}"
        return torch.zeros(0, dtype=torch.bool)


def _on(scores: Tensor, values: Sequence[float], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=scores.device)
