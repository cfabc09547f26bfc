"""The loss of a language model: the cross-entropy of each next token."""

import torch.nn.functional as F
from torch import Tensor


def next_token_loss(logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """The loss of ``logits`` ``[batch, tokens, vocabulary]``, computed in fp32: transformers' for causal models.

    Args:
        labels: ``[batch, tokens]``, those of the tokens themselves, which are shifted here; -100 does not count.
        num_items: labels that count in all micro-batches and ranks: the loss is then their sum divided by it, and
            otherwise their mean.
    """
    shifted = F.pad(labels, (0, 1), value=-100)[..., 1:]
    reduction = "mean" if num_items is None else "sum"
    flat = logits.float().flatten(0, -2)
    loss = F.cross_entropy(flat, shifted.flatten().to(logits.device), ignore_index=-100, reduction=reduction)
    if num_items is None:
        return loss
    return loss / (num_items.to(loss.device) if isinstance(num_items, Tensor) else num_items)
