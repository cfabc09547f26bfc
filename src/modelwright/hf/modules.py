"""What families take of transformers' own modules.

``GradientCheckpointingLayer`` is the base of a layer that ``gradient_checkpointing_enable`` finds. ``Conv1D`` is a
linear layer whose weight is ``[in, out]``, as GPT-2's checkpoints and its adapters have it.
"""

from transformers import Conv1D
from transformers.modeling_layers import GradientCheckpointingLayer

__all__ = ["Conv1D", "GradientCheckpointingLayer"]
