"""Limits against transformers' warpers, and the draw from a window against the draw from everything."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st
from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from modelwright.engine.noise import streams_of
from modelwright.engine.warpers import Limits, draw, draw_any, limit

CASES = [(5, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (50, 0.7, 0.02), (1, 1.0, 0.0), (0, 0.0, 0.0), (0, 0.3, 1.0)]
settings = st.tuples(st.sampled_from([0, 1, 3, 8, 40]), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.floats(0, 1))


def by_transformers(scores: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    warpers = LogitsProcessorList()
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    warpers.append(MinPLogitsWarper(min_p))
    return warpers(None, scores)  # type: ignore[arg-type]


def random_scores(seed: int, rows: int, vocabulary: int, rounded: bool) -> torch.Tensor:
    scores = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    return scores.bfloat16().float() if rounded else scores  # bf16 logits are full of equals


@pytest.mark.parametrize("vocabulary", [7, 300, 5000])
def test_limits_of_mixed_rows_are_transformers_bit_for_bit(vocabulary):
    scores = random_scores(0, len(CASES), vocabulary, rounded=False)
    limited = limit(scores, Limits.of(CASES))
    for row, case in enumerate(CASES):
        assert torch.equal(limited[row : row + 1], by_transformers(scores[row : row + 1], *case))


@pytest.mark.parametrize("vocabulary", [7, 300, 5000])
def test_among_equals_as_many_stay_as_in_transformers(vocabulary):
    scores = random_scores(0, len(CASES), vocabulary, rounded=True)
    limited = limit(scores, Limits.of(CASES))
    for row, case in enumerate(CASES):
        expected = by_transformers(scores[row : row + 1], *case)[0]
        assert torch.equal(limited[row].sort().values, expected.sort().values)
        kept = torch.isfinite(limited[row])
        assert torch.equal(limited[row][kept], scores[row][kept])


@options(max_examples=40)
@given(seed=st.integers(0, 10**6), rows=st.lists(settings, min_size=1, max_size=5))
def test_limits_are_transformers_for_any_settings(seed, rows):
    scores = random_scores(seed, len(rows), 40, rounded=False)
    limited = limit(scores, Limits.of(rows))
    for row, case in enumerate(rows):
        assert torch.equal(limited[row : row + 1], by_transformers(scores[row : row + 1], *case))


@options(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    rows=st.lists(settings, min_size=1, max_size=5),
    rounded=st.booleans(),
    heat=st.sampled_from([0.2, 1.0, 4.0]),
    masked=st.integers(0, 60),
)
def test_windows_draw_what_the_whole_vocabulary_draws(seed, rows, rounded, heat, masked):
    scores = random_scores(seed, len(rows), 64, rounded) / heat
    scores[:, torch.randperm(64, generator=torch.Generator().manual_seed(seed))[:masked]] = -torch.inf
    limits, streams = Limits.of(rows), streams_of([(seed, row) for row in range(len(rows))])
    expected = draw_any(limit(scores, limits), streams)
    assert torch.equal(draw(scores, limits, streams, windows=(8, 32)), expected)
    assert torch.equal(draw(scores, limits, streams, windows=()), expected)


def test_a_large_vocabulary_is_drawn_from_its_window():
    scores = random_scores(3, 64, 9000, rounded=True) * 2
    limits, streams = Limits.of([(20, 0.9, 0.0), (0, 0.9, 0.0)] * 32), streams_of([(7, row) for row in range(64)])
    assert torch.equal(draw(scores, limits, streams), draw_any(limit(scores, limits), streams))


def test_of_equals_at_the_border_top_k_keeps_all_and_top_p_the_higher_ids():
    scores = torch.zeros(1, 600)
    assert torch.isfinite(limit(scores, Limits.of([(3, 1.0, 0.0)]))).sum() == 600
    kept = torch.isfinite(limit(scores, Limits.of([(0, 0.5, 0.0)])))[0].nonzero()[:, 0].tolist()
    assert len(kept) in (300, 301) and kept == list(range(600 - len(kept), 600))
    drawn = draw(scores.expand(200, -1), Limits.of([(0, 0.5, 0.0)] * 200), streams_of([(1, i) for i in range(200)]))
    assert drawn.min() >= 600 - len(kept)


def test_a_row_without_a_possible_token_disturbs_no_other():
    scores = random_scores(5, 2, 400, rounded=False)
    alone = draw(scores[:1], Limits.of([(4, 0.9, 0.0)]), streams_of([(1, 0)]))
    scores[1] = -torch.inf
    both = draw(scores, Limits.of([(4, 0.9, 0.0)] * 2), streams_of([(1, 0), (2, 0)]))
    assert both[0] == alone[0]
