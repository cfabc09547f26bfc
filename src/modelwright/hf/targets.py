"""The labels of a pass, as a loss takes them, without those that only padding could foresee."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.errors import RequestError
from modelwright.hf.caches import Cache, cached_tokens
from modelwright.ops.cross_entropy import IGNORED


@dataclass(frozen=True)
class Targets:
    """What a pass is to foresee.

    Attributes:
        labels: ``[batch, tokens]`` as a loss takes them, or one token longer, where the last token has a label too.
        given: how many of them the caller meant, as transformers' ``Trainer`` counts them.
    """

    labels: Tensor
    given: Tensor

    @classmethod
    def of(
        cls,
        labels: Tensor | None,
        shift_labels: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        aligned: bool,
    ) -> Self | None:
        """The labels that a caller gives, -100 where padding would have to foresee a row's first token; None if none.

        Args:
            labels: ``[batch, tokens]``, those of the tokens themselves, or ``aligned``: of the tokens after them.
            shift_labels: ``[batch, tokens]``, those of the tokens after them; they go before ``labels``.
            mask: that of the pass, ``[batch, past + tokens]``; one of four dimensions says nothing of padding.
            cache: what holds the past.
        """
        if shift_labels is not None:
            labels = shift_labels if aligned else F.pad(shift_labels, (1, 0), value=IGNORED)
        if labels is None:
            return None
        given = ((labels if aligned else labels[:, 1:]) != IGNORED).sum()
        if mask is not None and mask.dim() == 2:
            new = torch.arange(labels.shape[1], device=mask.device) + cached_tokens(cache)
            real = mask.index_select(1, new.clamp(max=mask.shape[1] - 1))  # a label of what comes next has no column
            labels = labels.masked_fill(_after_padding(real, labels, aligned), IGNORED)
        return cls(labels, given)

    def refuse_fewer_logits(self, logits_to_keep: int | Tensor) -> None:
        """Raise a :class:`RequestError` unless every token gets logits."""
        if not isinstance(logits_to_keep, int) or logits_to_keep != 0:
            raise RequestError(f"labels need the logits of every token: logits_to_keep must be 0, not {logits_to_keep}")

    def beside(self, tokens: Tensor) -> Tensor:
        """``tokens`` ``[batch, tokens, ...]`` as long as the labels: what is added foresees nothing."""
        longer = self.labels.shape[1] - tokens.shape[1]
        return F.pad(tokens, (*(0, 0) * (tokens.dim() - 2), 0, longer)) if longer else tokens

    def items(self, num_items: Tensor | int | None, counted: Tensor) -> Tensor | None:
        """What a pass's summed loss is divided by: ``num_items``, the labels that count in all passes of a step.

        Who holds the only pass of a step may have counted all labels that were ``given``: then the ``counted`` ones.
        """
        if num_items is None:
            return None
        items = torch.as_tensor(num_items, device=counted.device)
        alone = (items == self.given.to(items.device)) & (counted > 0)
        return torch.where(alone, counted, items)


def _after_padding(mask: Tensor, labels: Tensor, aligned: bool) -> Tensor:
    """Where ``labels`` are of the first real tokens after padding."""
    real = mask.bool().to(labels.device)
    first = real[:, 1:] & ~real[:, :-1]
    length = labels.shape[1] - first.shape[1]
    return F.pad(first, (0, length) if aligned else (1, length - 1))
