"""A layer that may be computed a second time in the backward pass, so that training need not keep what is inside it."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import nn


class CheckpointedLayer(nn.Module):
    """The base of a layer whose ``forward`` is recomputed where ``gradient_checkpointing`` is true, in training.

    transformers' ``gradient_checkpointing_enable`` sets the two attributes of every module that has them.

    Attributes:
        gradient_checkpointing: whether to recompute.
        _gradient_checkpointing_func: ``(function, *inputs) -> output``, such as ``torch.utils.checkpoint.checkpoint``.
    """

    gradient_checkpointing: bool = False
    _gradient_checkpointing_func: Callable[..., Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let ``forward`` ask first; ``__call__`` does not, or hooks would run again in the backward pass."""
        super().__init_subclass__(**kwargs)
        forward = cls.forward

        @wraps(forward)
        def asking(self: CheckpointedLayer, *inputs: Any, **others: Any) -> Any:
            outermost = type(self).forward is asking  # a subclass of a layer has wrapped it once more
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled() and outermost:
                return self._gradient_checkpointing_func(partial(forward, self, **others), *inputs)
            return forward(self, *inputs, **others)

        cls.forward = asking
