"""The three ways to choose experts on scores small enough to follow, and the losses at their known values."""

import math

import pytest
import torch

from modelwright.ops.routing import (
    batch_balance_loss,
    biased_topk,
    expert_load,
    greedy_topk,
    group_balance_loss,
    group_limited_topk,
    sequence_balance_loss,
    within_capacity,
    z_loss,
)

SCORES = torch.tensor([[0.30, 0.05, 0.20, 0.19, 0.01, 0.25]])


def picked(weights: torch.Tensor, chosen: torch.Tensor) -> dict[int, float]:
    """The only token's weights by expert."""
    return {e: round(w, 4) for e, w in zip(chosen[0].tolist(), weights[0].tolist(), strict=True)}


def test_greedy_takes_the_best():
    assert picked(*greedy_topk(SCORES, 2)) == {0: 0.30, 5: 0.25}


def test_groups_are_ranked_by_their_best_expert():
    # groups (0.30 0.05) (0.20 0.19) (0.01 0.25): the first and the last are kept
    assert picked(*group_limited_topk(SCORES, 3, groups=3, top_groups=2)) == {0: 0.30, 5: 0.25, 1: 0.05}


def test_a_bias_steers_the_choice_and_not_the_weight():
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    assert picked(*biased_topk(SCORES, bias, 2, groups=1, top_groups=1)) == {4: 0.01, 0: 0.30}


def test_biased_groups_are_ranked_by_their_two_best():
    # sums 0.35, 0.39 and 0.26: the middle group wins though its best is the smallest
    assert picked(*biased_topk(SCORES, torch.zeros(6), 2, groups=3, top_groups=1)) == {2: 0.20, 3: 0.19}


def test_groups_of_one_expert_are_ranked_by_it():
    assert picked(*biased_topk(SCORES, torch.zeros(6), 2, groups=6, top_groups=2)) == {0: 0.30, 5: 0.25}


def test_experts_outside_the_groups_count_as_zero_as_in_the_official_code():
    bias = torch.tensor([-1.0, -1.0, -2.0, -2.0, -2.0, -2.0])  # the first group is best and still negative
    weights, chosen = biased_topk(SCORES, bias, 2, groups=3, top_groups=1)
    assert not set(chosen[0].tolist()) & {0, 1}
    assert torch.equal(weights, SCORES.gather(1, chosen))


def test_gradients_reach_the_scores_through_the_weights_only():
    scores = SCORES.clone().requires_grad_()
    weights, _ = biased_topk(scores, torch.zeros(6), 2, groups=3, top_groups=1)
    weights.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0, 0, 1, 1, 0, 0]]


def test_perfect_balance_costs_one():
    scores = torch.full((8, 4), 0.25)
    chosen = torch.arange(16).reshape(8, 2) % 4
    assert batch_balance_loss(scores, chosen).item() == pytest.approx(1.0)
    assert sequence_balance_loss(scores, chosen, batch=2).item() == pytest.approx(1.0)


def test_all_on_one_expert_costs_the_number_of_experts():
    scores = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(6, 1)
    chosen = torch.zeros(6, 1, dtype=torch.long)
    assert batch_balance_loss(scores, chosen).item() == pytest.approx(4.0)


def test_sequences_are_balanced_one_by_one():
    scores = torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2)
    chosen = torch.tensor([[0], [0], [1], [1]])  # even over the batch, each sequence on one expert
    assert batch_balance_loss(scores, chosen).item() == pytest.approx(1.0)
    assert sequence_balance_loss(scores, chosen, batch=2).item() == pytest.approx(2.0)


def test_load_counts_choices():
    load = expert_load(torch.tensor([[0, 2], [2, 3]]), experts=5)
    assert load.dtype == torch.float32
    assert load.tolist() == [1, 0, 2, 1, 0]


def test_room_goes_to_best_choices_first_or_to_tokens_in_turn():
    chosen = torch.tensor([[0, 1], [0, 1], [1, 0]])
    weights = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.7, 0.3]])
    # one place each: expert 0's goes to token 0, expert 1's to the first who prefers it
    assert within_capacity(weights, chosen, 2, 0.1, by_token=False).tolist() == [[1, 0], [0, 1], [0, 0]]
    assert within_capacity(weights, chosen, 2, 0.1, by_token=True).tolist() == [[1, 1], [0, 0], [0, 0]]
    assert within_capacity(weights, chosen, 2, 5.0, by_token=False).all()


def test_groups_of_experts_are_balanced_like_experts():
    scores = torch.tensor([[0.4, 0.4, 0.1, 0.1]]).expand(4, -1)
    even, crowded = torch.tensor([[0, 2]] * 4), torch.tensor([[0, 1]] * 4)
    assert group_balance_loss(scores, even, 2).item() == pytest.approx(1.0)
    assert group_balance_loss(scores, crowded, 2).item() == pytest.approx(2 * 0.8)
    assert group_balance_loss(scores, crowded, 4) == batch_balance_loss(scores, crowded)


def test_the_z_loss_is_the_mean_square_of_the_log_sum():
    logits = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert z_loss(logits).item() == pytest.approx((math.log(2) ** 2 + (1 + math.log(2)) ** 2) / 2)
