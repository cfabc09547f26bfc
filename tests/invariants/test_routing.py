"""Routing and balance losses against plain Python over lists, for every method, size and bias."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelwright.ops.routing import (
    batch_balance_loss,
    biased_topk,
    greedy_topk,
    group_limited_topk,
    sequence_balance_loss,
)

seeds = st.integers(0, 2**16)


@st.composite
def problems(draw) -> tuple[torch.Tensor, torch.Tensor, int, int, int]:
    """Scores and a bias (positive and negative), top_k, number of groups, groups kept."""
    groups, size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    kept = draw(st.integers(1, groups))
    top_k = draw(st.integers(1, kept * size))
    torch.manual_seed(draw(seeds))
    scores = torch.randn(draw(st.integers(1, 5)), groups * size)
    bias = torch.randn(groups * size) * draw(st.sampled_from([0.1, 1.0]))
    return draw(st.sampled_from([scores.softmax(-1), scores.sigmoid()])), bias, top_k, groups, kept


def competing(scores: list[float], bias: list[float], groups: int, kept: int, best: int) -> list[float]:
    """One token's experts as they compete: groups are ranked by their ``best`` highest, those left out count as 0.0."""
    steered = [s + b for s, b in zip(scores, bias, strict=True)]
    size = len(scores) // groups
    rank = {g: sum(sorted(steered[g * size : (g + 1) * size])[-best:]) for g in range(groups)}
    inside = sorted(rank, key=rank.__getitem__)[-kept:]
    return [s if e // size in inside else 0.0 for e, s in enumerate(steered)]


def check(routed: tuple[torch.Tensor, torch.Tensor], scores: torch.Tensor, slow: list[list[float]]) -> None:
    """Every token takes different experts, the best of those that compete, with their unbiased scores as weights."""
    weights, chosen = routed
    assert torch.equal(weights, scores.gather(1, chosen))
    for ours, values in zip(chosen.tolist(), slow, strict=True):
        assert len(set(ours)) == len(ours)
        assert sorted(values[e] for e in ours) == pytest.approx(sorted(values)[-len(ours) :], abs=1e-6)


@given(problems())
def test_greedy(problem):
    scores, _, top_k, _, _ = problem
    check(greedy_topk(scores, top_k), scores, scores.tolist())


@given(problems())
def test_group_limited(problem):
    scores, bias, top_k, groups, kept = problem
    slow = [competing(row, [0.0] * len(bias), groups, kept, best=1) for row in scores.tolist()]
    check(group_limited_topk(scores, top_k, groups, kept), scores, slow)


@given(problems())
def test_noaux_tc(problem):
    scores, bias, top_k, groups, kept = problem
    slow = [competing(row, bias.tolist(), groups, kept, best=2) for row in scores.tolist()]
    check(biased_topk(scores, bias, top_k, groups, kept), scores, slow)


def slow_balance(scores: list[list[float]], chosen: list[list[int]]) -> float:
    """``sum_e f_e * P_e``: f the share of choices times the number of experts, P the mean score."""
    experts, tokens, top_k = len(scores[0]), len(scores), len(chosen[0])
    loss = 0.0
    for e in range(experts):
        share = sum(row.count(e) for row in chosen) / (tokens * top_k) * experts
        loss += share * sum(row[e] for row in scores) / tokens
    return loss


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.data(), seeds)
def test_balance_losses(batch, tokens, experts, data, seed):
    torch.manual_seed(seed)
    scores = torch.randn(batch * tokens, experts).softmax(dim=-1)
    chosen = scores.topk(data.draw(st.integers(1, experts))).indices
    rows, picks = scores.tolist(), chosen.tolist()
    assert batch_balance_loss(scores, chosen).item() == pytest.approx(slow_balance(rows, picks), rel=1e-5)
    spans = [slice(start, start + tokens) for start in range(0, batch * tokens, tokens)]
    expected = sum(slow_balance(rows[span], picks[span]) for span in spans) / batch
    assert sequence_balance_loss(scores, chosen, batch).item() == pytest.approx(expected, rel=1e-5)
