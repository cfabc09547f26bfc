"""Tiny ImageGPTs for the tests, and transformers' own model on the same weights."""

from typing import Any

import torch
import transformers

from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling

TINY: dict[str, Any] = {
    "vocab_size": 17,
    "n_positions": 24,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 6,  # heads of 4 = 2 * 2: transformers 5.17 cuts the square root of any other width to a whole number
    "initializer_range": 0.2,
}


def tiny_imagegpt(cls: Any = ImageGPTForCausalImageModeling, seed: int = 0, **fields: Any) -> Any:
    """An ImageGPT with random weights, in eval mode."""
    torch.manual_seed(seed)
    return cls(ImageGPTConfig(**TINY | fields)).eval()


def with_weights_of(model: Any, **fields: Any) -> Any:
    """A model of the same class with other values of some fields and the same weights."""
    other = type(model)(ImageGPTConfig.from_dict(model.config.to_dict(), **fields))
    other.load_state_dict(model.state_dict())
    return other.eval()


def pair(
    cls: Any = ImageGPTForCausalImageModeling, how: str | None = None, seed: int = 0, **fields: Any
) -> tuple[Any, Any]:
    """Our model (attending as ``how`` says) and transformers' on one config and the same weights, in eval mode.

    Norms and biases are moved away from one and zero, where mistakes would not show.
    """
    torch.manual_seed(seed)
    theirs = getattr(transformers, cls.__name__)(transformers.ImageGPTConfig(**TINY | fields)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    ours = cls(ImageGPTConfig(**TINY | fields, **({} if how is None else {"attn_implementation": how}))).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def colours(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random colours, never the start token."""
    return torch.randint(0, TINY["vocab_size"] - 1, shape, generator=torch.Generator().manual_seed(seed))
