"""The next-token loss of MindFormers' and Hugging Face's Llama: which labels count, and what their sum is divided by.

Leaves out the balance losses of experts (``balance.py``) and sums over ranks, which are the trainer's.
"""

import torch.nn.functional as F
from torch import Tensor

from modelwright.families.llama.config import LlamaConfig

IGNORED = -100  # what transformers' collators write, whatever ignore_token_id is


def language_loss(
    logits: Tensor, labels: Tensor, input_ids: Tensor | None, config: LlamaConfig, num_items: Tensor | int | None
) -> tuple[Tensor, Tensor]:
    """The loss over the labels that count, in fp32, and how many they are.

    A label counts unless it is ``ignore_token_id`` or -100, or the token that should foresee it is padding. The loss is
    their mean; with ``num_items``, their sum divided by it.

    Args:
        logits: ``[batch, tokens, vocabulary]``; labels, input_ids: ``[batch, tokens]``. Unless ``input_sliced_sig``,
            labels are those of the tokens themselves and are shifted here, so that the last logits foresee nothing.
        num_items: labels that count in all micro-batches and ranks.
    """
    if not config.input_sliced_sig:
        logits, labels = logits[:, :-1], labels[:, 1:]
        input_ids = None if input_ids is None else input_ids[:, :-1]
    counts = (labels != config.ignore_token_id) & (labels != IGNORED)
    if input_ids is not None and config.padding_by_id is not None:
        counts = counts & (input_ids != config.padding_by_id)
    targets = labels.masked_fill(~counts, IGNORED).to(logits.device)
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    counted = counts.sum()
    return total / (counted.clamp(min=1) if num_items is None else num_items), counted
