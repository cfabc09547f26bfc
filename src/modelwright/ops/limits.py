"""Top-k, top-p and min-p: which tokens of each row they leave, as transformers' warpers do; drawing is left out."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Limits:
    """The settings of R rows, each ``[R]`` and on one device; 0, 1 and 0 set no limit.

    Attributes:
        top_k: int64.
        top_p, mass_below: float32; what the kept tokens reach, and what transformers compares with, 1 - top_p.
        min_p: float32.
        most_k: the largest top_k; it and the next two are known without a look at the tensors.
        has_p, has_min_p: whether any row sets that limit.
    """

    top_k: Tensor
    top_p: Tensor
    mass_below: Tensor
    min_p: Tensor
    most_k: int
    has_p: bool
    has_min_p: bool

    @classmethod
    def of(cls, limits: list[tuple[int, float, float]], device: torch.device | str = "cpu") -> Self:
        """From each row's (top_k, top_p, min_p)."""
        top_k, top_p, min_p = zip(*limits, strict=True)
        return cls(
            torch.tensor([max(k, 0) for k in top_k], device=device),
            torch.tensor(top_p, dtype=torch.float32, device=device),
            torch.tensor([1 - p for p in top_p], dtype=torch.float32, device=device),
            torch.tensor(min_p, dtype=torch.float32, device=device),
            max(0, *top_k),
            min(top_p) < 1,
            max(min_p) > 0,
        )

    def rows(self, chosen: Tensor) -> Self:
        """The limits of some rows, by their numbers."""
        top_k, top_p, below, min_p = (part[chosen] for part in (self.top_k, self.top_p, self.mass_below, self.min_p))
        return replace(self, top_k=top_k, top_p=top_p, mass_below=below, min_p=min_p)


def limit(scores: Tensor, limits: Limits) -> Tensor:
    """scores ``[R, V]`` float32 with every token at minus infinity that `limits` leaves out.

    The same values as transformers' ``TopKLogitsWarper``, ``TopPLogitsWarper`` and ``MinPLogitsWarper`` in this order:
    tokens as good as the k-th stay, and the best always. Of equal tokens at the border of top-p the higher ids stay,
    where transformers takes as many, but whichever its sort leaves last.
    """
    removed = _beyond_p(scores, limits) if limits.has_p else _beyond_k(scores, limits)
    scores = scores.masked_fill(removed, -torch.inf)
    return _without_unlikely(scores, limits.min_p) if limits.has_min_p else scores


def _beyond_k(scores: Tensor, limits: Limits) -> Tensor:
    """Where a score is below its row's top-k ``[R, V]``."""
    most = min(limits.most_k, scores.shape[-1])
    if most == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    kth = scores.topk(most, dim=-1).values.gather(1, limits.top_k.clamp(1, most)[:, None] - 1)
    return (scores < kth) & (limits.top_k > 0)[:, None]


def _beyond_p(scores: Tensor, limits: Limits) -> Tensor:
    """Where a score is below its row's top-k, or below the top-p of what that leaves ``[R, V]``."""
    ascending, order = scores.sort(dim=-1, stable=True)
    vocabulary = scores.shape[-1]
    kth = ascending.gather(1, (vocabulary - limits.top_k.clamp(1, vocabulary))[:, None])
    beyond_k = (ascending < kth) & (limits.top_k > 0)[:, None]
    mass = ascending.masked_fill(beyond_k, -torch.inf).softmax(-1).cumsum(-1)
    beyond_p = (mass <= limits.mass_below[:, None]) & (limits.top_p < 1)[:, None]
    beyond_p[:, -1] = False
    return torch.empty_like(beyond_k).scatter_(1, order, beyond_k | beyond_p)


def _without_unlikely(scores: Tensor, min_p: Tensor) -> Tensor:
    """Tokens that have less than `min_p` of the best one's probability are left out, the best one never."""
    probabilities = scores.softmax(-1)
    best, place = probabilities.max(-1, keepdim=True)
    unlikely = (probabilities < min_p[:, None] * best).scatter_(1, place, False)
    return scores.masked_fill(unlikely, -torch.inf)
