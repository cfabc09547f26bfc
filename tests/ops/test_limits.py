"""Limits against transformers' warpers, whatever is asked of the rows of one batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from modelwright.ops.limits import Limits, limit
from tests.scores import LIMITS, random_scores

CASES = [(5, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (50, 0.7, 0.02), (1, 1.0, 0.0), (0, 0.0, 0.0), (0, 0.3, 1.0)]


def by_transformers(scores: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    warpers = LogitsProcessorList()
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    warpers.append(MinPLogitsWarper(min_p))
    return warpers(None, scores)  # type: ignore[arg-type]


@pytest.mark.parametrize("vocabulary", [7, 300, 5000])
def test_limits_of_mixed_rows_are_transformers_bit_for_bit(vocabulary):
    scores = random_scores(0, len(CASES), vocabulary, rounded=False)
    limited = limit(scores, Limits.of(CASES))
    for row, case in enumerate(CASES):
        assert torch.equal(limited[row : row + 1], by_transformers(scores[row : row + 1], *case))
        assert torch.equal(limit(scores[row : row + 1], Limits.of([case])), limited[row : row + 1])


@pytest.mark.parametrize("vocabulary", [7, 300, 5000])
def test_among_equals_as_many_stay_as_in_transformers(vocabulary):
    scores = random_scores(0, len(CASES), vocabulary, rounded=True)
    limited = limit(scores, Limits.of(CASES))
    for row, case in enumerate(CASES):
        expected = by_transformers(scores[row : row + 1], *case)[0]
        assert torch.equal(limited[row].sort().values, expected.sort().values)
        kept = torch.isfinite(limited[row])
        assert torch.equal(limited[row][kept], scores[row][kept])


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), rows=st.lists(LIMITS, min_size=1, max_size=5))
def test_limits_are_transformers_for_any_settings(seed, rows):
    scores = random_scores(seed, len(rows), 40, rounded=False)
    limited = limit(scores, Limits.of(rows))
    for row, case in enumerate(rows):
        assert torch.equal(limited[row : row + 1], by_transformers(scores[row : row + 1], *case))


def test_of_equals_at_the_border_top_k_keeps_all_and_top_p_the_higher_ids():
    scores = torch.zeros(1, 600)
    assert torch.isfinite(limit(scores, Limits.of([(3, 1.0, 0.0)]))).sum() == 600
    kept = torch.isfinite(limit(scores, Limits.of([(0, 0.5, 0.0)])))[0].nonzero()[:, 0].tolist()
    assert len(kept) in (300, 301) and kept == list(range(600 - len(kept), 600))
