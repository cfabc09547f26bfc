"""What families take of transformers' own modules.

``Conv1D`` is a linear layer whose weight is ``[in, out]``, as GPT-2's checkpoints and its adapters have it.
"""

from transformers.pytorch_utils import Conv1D

__all__ = ["Conv1D"]
