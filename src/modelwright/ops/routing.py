"""Choosing experts and balancing them (arXiv:2401.06066, 2405.04434 and 2412.19437); who computes is not known here.

Scores are fp32 ``[tokens, experts]``; every choice returns ``(weights, indices)``, both ``[tokens, top_k]``, with the
weights taken from the unbiased scores and not yet normalised or scaled.
"""

import torch
from torch import Tensor


def greedy_topk(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The ``top_k`` best experts."""
    weights, chosen = scores.topk(top_k, dim=-1, sorted=False)
    return weights, chosen


def group_limited_topk(scores: Tensor, top_k: int, groups: int, top_groups: int) -> tuple[Tensor, Tensor]:
    """The best experts of the ``top_groups`` groups whose best expert scores highest."""
    rank = scores.unflatten(-1, (groups, -1)).amax(dim=-1)
    return greedy_topk(_within_best_groups(scores, rank, top_groups), top_k)


def biased_topk(scores: Tensor, bias: Tensor, top_k: int, groups: int, top_groups: int) -> tuple[Tensor, Tensor]:
    """``noaux_tc``: a bias steers the choice of groups and experts, and the unbiased score is the weight.

    Groups are ranked by the sum of their two best biased scores. Experts outside them count as 0.0, as in the official
    code, so one of them can still be chosen when every biased score inside is negative.
    """
    steered = scores + bias
    best_two = steered.unflatten(-1, (groups, -1)).topk(min(2, scores.shape[-1] // groups), dim=-1).values
    chosen = _within_best_groups(steered, best_two.sum(dim=-1), top_groups).topk(top_k, dim=-1, sorted=False).indices
    return scores.gather(-1, chosen), chosen


def _within_best_groups(scores: Tensor, rank: Tensor, top_groups: int) -> Tensor:
    best = rank.topk(top_groups, dim=-1, sorted=False).indices
    keep = torch.zeros_like(rank, dtype=torch.bool).scatter(-1, best, True)  # [tokens, groups]
    return scores.unflatten(-1, (rank.shape[-1], -1)).masked_fill(~keep[..., None], 0.0).flatten(-2)


def sequence_balance_loss(scores: Tensor, chosen: Tensor, batch: int) -> Tensor:
    """Expert-level balance within each sequence, mean over the batch (DeepSeek-V2, eq. 23), unscaled: a scalar.

    ``tokens`` is ``batch`` sequences of equal length. With softmax scores it is 1.0 where every expert gets its share.
    """
    experts, top_k = scores.shape[-1], chosen.shape[-1]
    share = _choice_counts(chosen.view(batch, -1), experts) * (experts / (top_k * (scores.shape[0] / batch)))
    return (share * scores.view(batch, -1, experts).mean(dim=1)).sum(dim=1).mean()


def batch_balance_loss(scores: Tensor, chosen: Tensor) -> Tensor:
    """Expert-level balance over all tokens of the batch together, unscaled: a scalar."""
    experts = scores.shape[-1]
    share = _choice_counts(chosen.view(1, -1), experts)[0] * (experts / chosen.numel())
    return (share * scores.mean(dim=0)).sum()


def expert_load(chosen: Tensor, experts: int) -> Tensor:
    """How many choices fell on each expert: fp32 ``[experts]``."""
    return _choice_counts(chosen.view(1, -1), experts)[0]


def _choice_counts(chosen: Tensor, experts: int) -> Tensor:
    """``[rows, choices]`` of expert ids -> fp32 ``[rows, experts]`` of how often each was chosen."""
    ones = torch.ones_like(chosen, dtype=torch.float32)
    return torch.zeros(chosen.shape[0], experts, device=chosen.device).scatter_add(1, chosen, ones)
