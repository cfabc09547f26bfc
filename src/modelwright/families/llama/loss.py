"""Which labels of MindFormers' and Hugging Face's Llama count, each beside the token that is to foresee it.

Leaves out the balance losses of experts (``balance.py``) and sums over ranks, which are the trainer's.
"""

import torch.nn.functional as F
from torch import Tensor

from modelwright.families.llama.config import LlamaConfig
from modelwright.ops.cross_entropy import IGNORED


def next_tokens(labels: Tensor, input_ids: Tensor | None, config: LlamaConfig) -> Tensor:
    """What each token is to foresee, ``[batch, tokens]``; -100 where nothing counts.

    A label counts unless it is ``ignore_token_id`` or -100, or the token that should foresee it is padding.

    Args:
        labels, input_ids: ``[batch, tokens]``. Unless ``input_sliced_sig``, labels are those of the tokens themselves
            and are shifted here, so that the last token foresees nothing.
    """
    if not config.input_sliced_sig:
        labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    counts = labels != config.ignore_token_id  # -100 is what transformers' collators write, whatever that is
    if input_ids is not None and config.padding_by_id is not None:
        counts = counts & (input_ids != config.padding_by_id)
    return labels.masked_fill(~counts, IGNORED)
