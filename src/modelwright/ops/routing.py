"""Choosing experts and balancing them (arXiv:2401.06066, 2405.04434 and 2412.19437); who computes is not known here.

Scores are fp32 ``[tokens, experts]``; every choice returns ``(weights, indices)``, both ``[tokens, top_k]``, with the
weights taken from the unbiased scores and not yet normalised or scaled.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends.cpu.thresholds import ROUTED_TOKENS
from modelwright.ops.dispatch import only_numbers
from modelwright.ops.invariant import rows_are_invariant
from modelwright.ops.products import plain_linear

_SCORED = (torch.float32, torch.bfloat16)


def router_scores(x: Tensor, weight: Tensor, scoring: str, compute: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits ``x @ weight.T`` and their ``softmax`` or ``sigmoid``, both fp32 ``[tokens, experts]``.

    x ``[tokens, dim]``, weight ``[experts, dim]``; ``compute`` is the type of the product.
    """
    alone = rows_are_invariant()
    few = (alone or x.shape[0] <= ROUTED_TOKENS) and compute == torch.float32 and weight.dtype in _SCORED
    if few and only_numbers(x, weight) and x.is_contiguous() and kernels.serves_rows(x, weight):
        return kernels.route(x, weight, scoring == "softmax")  # token by token
    if alone and x.shape[0] > 1:
        each = [reference_router_scores(row.clone(), weight, scoring, compute) for row in x.split(1)]
        logits, scores = (torch.cat(part) for part in zip(*each, strict=True))
        return logits, scores
    return reference_router_scores(x, weight, scoring, compute)


def reference_router_scores(x: Tensor, weight: Tensor, scoring: str, compute: torch.dtype) -> tuple[Tensor, Tensor]:
    """:func:`router_scores` by torch, autocast off. The documentation of the kernel."""
    with torch.autocast(x.device.type, enabled=False):
        logits = plain_linear(x.to(compute), weight.to(compute)).float()
    return logits, logits.softmax(dim=-1) if scoring == "softmax" else logits.sigmoid()


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
    keep = torch.zeros_like(rank, dtype=torch.bool).scatter(-1, best, 1)  # [tokens, groups]
    return scores.unflatten(-1, (rank.shape[-1], -1)).masked_fill(~keep[..., None], 0.0).flatten(-2)


def sequence_balance_loss(scores: Tensor, chosen: Tensor, batch: int) -> Tensor:
    """Expert-level balance within each sequence, mean over the batch (DeepSeek-V2, eq. 23), unscaled: a scalar.

    ``tokens`` is ``batch`` sequences of equal length. With softmax scores it is 1.0 where every expert gets its share.
    """
    experts, top_k = scores.shape[-1], chosen.shape[-1]
    share = _choice_counts(chosen.view(batch, -1), experts) * (experts / (top_k * (scores.shape[0] / batch)))
    return (share * scores.view(batch, -1, experts).mean(dim=1)).sum(dim=1).mean()


def document_balance_loss(scores: Tensor, chosen: Tensor, documents: Tensor) -> Tensor:
    """:func:`sequence_balance_loss` where a sequence is a document: neighbours of one number in a row of ``documents``.

    ``documents`` is ``[batch, tokens]``, and ``batch * tokens`` the tokens scored. A scalar, the mean over documents.
    """
    experts, top_k = scores.shape[-1], chosen.shape[-1]
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    own = (starts.flatten().cumsum(0) - 1).to(scores.device)  # counted through; as many as tokens at most
    lengths = scores.new_zeros(own.shape[0]).scatter_add(0, own, scores.new_ones(own.shape[0]))
    cells = (own[:, None] * experts + chosen).flatten()
    counts = scores.new_zeros(own.shape[0] * experts).scatter_add(0, cells, scores.new_ones(cells.shape[0]))
    shares = counts.view(-1, experts) * experts / top_k
    sums = torch.zeros_like(scores).index_add(0, own, scores)
    losses = (shares * sums).sum(dim=1) / lengths.clamp(min=1).square()
    return losses.sum() / (lengths > 0).sum()


def switch_balance_loss(logits: Sequence[Tensor], top_k: int, real: Tensor | None = None) -> Tensor:
    """transformers' balance loss of all layers together (arXiv:2101.03961, eq. 4 to 6), unscaled: a scalar.

    It knows softmax scores and the ``top_k`` largest of them, whatever the routers do, and takes the layers' shares and
    scores together before it multiplies them.

    Args:
        logits: ``[batch * tokens, experts]`` of each layer's router.
        real: ``[batch, tokens]``, 0 where a token is padding and does not count.
    """
    experts = logits[0].shape[-1]
    counts = scores = logits[0].new_zeros(experts, dtype=torch.float32)
    for own in logits:
        probabilities = own.to(counts.device, torch.float32).softmax(dim=-1)
        weights = torch.ones_like(probabilities[:, 0]) if real is None else real.flatten().to(probabilities)
        chosen = probabilities.topk(top_k, dim=-1).indices
        counts = counts.scatter_add(0, chosen.flatten(), weights[:, None].expand(chosen.shape).flatten())
        scores = scores + (probabilities * weights[:, None]).sum(dim=0)
    tokens = len(logits) * (logits[0].shape[0] if real is None else real.sum())
    return experts * ((counts / tokens) * (scores / tokens)).sum()


def batch_balance_loss(scores: Tensor, chosen: Tensor, counts: Tensor | None = None) -> Tensor:
    """Expert-level balance over all tokens of the batch together, unscaled: a scalar.

    Where the tokens are a part of those that are balanced, ``counts`` ``[experts]`` are the choices of all: the mean of
    the parts' losses, weighted by their tokens, is then that of all tokens, and its gradient too.
    """
    experts = scores.shape[-1]
    if counts is None:
        share = _choice_counts(chosen.view(1, -1), experts)[0] * (experts / chosen.numel())
    else:
        share = counts * (experts / counts.sum())
    return (share * scores.mean(dim=0)).sum()


def group_balance_loss(scores: Tensor, chosen: Tensor, groups: int, counts: Tensor | None = None) -> Tensor:
    """Device-level balance (DeepSeek-V2, eq. 26): :func:`batch_balance_loss` over groups of neighbouring experts."""
    members = scores.shape[-1] // groups
    counts = None if counts is None else counts.unflatten(-1, (groups, members)).sum(dim=-1)
    return batch_balance_loss(scores.unflatten(-1, (groups, members)).sum(dim=-1), chosen // members, counts)


def z_loss(logits: Tensor) -> Tensor:
    """Mean squared log-sum-exp of the router's logits ``[tokens, experts]`` (ST-MoE, arXiv:2202.08906, eq. 5)."""
    return logits.logsumexp(dim=-1).square().mean()


def within_capacity(weights: Tensor, chosen: Tensor, experts: int, factor: float, by_token: bool) -> Tensor:
    """Which choices find room: an expert takes ``ceil(top_k * tokens * factor / experts)`` tokens at most.

    ``[tokens, top_k]``, boolean. Room goes to all tokens' best choices first, then to their second ones; with
    ``by_token`` to all choices of one token after another.
    """
    tokens, top_k = chosen.shape
    room = min(math.ceil(top_k * tokens * factor / experts), tokens)
    preference = weights.argsort(dim=-1, descending=True, stable=True)
    ranked = chosen.gather(-1, preference)  # best choice first
    queue = (ranked if by_token else ranked.T).flatten()
    asked = torch.zeros(queue.shape[0], experts, dtype=torch.long, device=chosen.device).scatter(1, queue[:, None], 1)
    place = asked.cumsum(dim=0).gather(1, queue[:, None]).squeeze(1)  # how many ask the same expert, up to this one
    fits = place <= room
    fits = fits.view(tokens, top_k) if by_token else fits.view(top_k, tokens).T
    return torch.zeros_like(fits).scatter(-1, preference, fits)


def expert_load(chosen: Tensor, experts: int) -> Tensor:
    """How many choices fell on each expert: fp32 ``[experts]``."""
    return _choice_counts(chosen.view(1, -1), experts)[0]


def _choice_counts(chosen: Tensor, experts: int) -> Tensor:
    """``[rows, choices]`` of expert ids -> fp32 ``[rows, experts]`` of how often each was chosen."""
    ones = torch.ones_like(chosen, dtype=torch.float32)
    return torch.zeros(chosen.shape[0], experts, device=chosen.device).scatter_add(1, chosen, ones)
