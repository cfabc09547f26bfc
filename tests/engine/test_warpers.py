"""The draw from a window against the draw from everything."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.engine.noise import streams_of
from modelwright.engine.warpers import draw, draw_any
from modelwright.ops.limits import Limits, limit
from tests.scores import LIMITS, random_scores


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    rows=st.lists(LIMITS, min_size=1, max_size=5),
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


def test_of_equals_at_the_border_of_top_p_the_higher_ids_are_drawn():
    scores = torch.zeros(1, 600)
    kept = torch.isfinite(limit(scores, Limits.of([(0, 0.5, 0.0)]))).sum()
    drawn = draw(scores.expand(200, -1), Limits.of([(0, 0.5, 0.0)] * 200), streams_of([(1, i) for i in range(200)]))
    assert drawn.min() >= 600 - kept


def test_a_row_without_a_possible_token_disturbs_no_other():
    scores = random_scores(5, 2, 400, rounded=False)
    alone = draw(scores[:1], Limits.of([(4, 0.9, 0.0)]), streams_of([(1, 0)]))
    scores[1] = -torch.inf
    both = draw(scores, Limits.of([(4, 0.9, 0.0)] * 2), streams_of([(1, 0), (2, 0)]))
    assert both[0] == alone[0]
