"""What stands before DeepSeek-VL2's decoder, as it is traced, and random pictures to feed it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from modelwright.errors import ConfigError


class VisionGraph(nn.Module):
    """The tower and the projector of a DeepSeek-VL2, and the learned rows between tiles.

    ``images`` ``[tiles, 3, side, side]`` to ``features`` ``[tiles, tokens, dim]``; ``marks`` are ``[2, dim]`` with the
    2D layout (newline, separator), ``[1 + most tiles, dim]`` with the 1D one (indicators), and depend on no input.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.vision, self.projector = model.vision, model.projector
        flat = model.config.tile_tag == "1D"
        marks = model.tile_indicators if flat else torch.stack((model.image_newline, model.view_seperator))
        self.marks: Tensor
        self.register_buffer("marks", marks.detach())

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by input name to tensors by output name."""
        return {"features": self.projector(self.vision(inputs["images"])), "marks": self.marks.clone()}


class EmbedGraph(nn.Module):
    """``input_ids`` ``[batch, tokens]`` to ``inputs_embeds`` ``[batch, tokens, dim]``."""

    def __init__(self, model: Any):
        super().__init__()
        self.embedding = model.get_input_embeddings()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by input name to tensors by output name."""
        return {"inputs_embeds": self.embedding(inputs["input_ids"])}


def dummy_conversations(
    preprocessor: Any,
    batch_size: int,
    seq_length: int,
    is_pair: bool,
    framework: str | None,
    num_channels: int,
    size: tuple[int, int],
) -> dict[str, Any]:
    """What ``preprocessor`` makes of questions about a picture of random pixels each, the same ones each time.

    ``seq_length`` must be -1: a prompt that is cut leaves a picture without its places. The other arguments are those
    of :func:`dummy_pictures`.
    """
    if is_pair or seq_length != -1:
        raise ConfigError(f"is_pair must be False and seq_length -1, got is_pair={is_pair}, seq_length={seq_length}")
    if num_channels != 3:
        raise ConfigError(f"num_channels must be 3, as the tower reads, got {num_channels}")
    if min(batch_size, *size) < 1:
        raise ConfigError(f"batch_size ({batch_size}) and the picture's sides {size} must be at least 1")
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(batch_size, size[1], size[0], num_channels), dtype=np.uint8)
    pictures = [[Image.fromarray(picture)] for picture in pixels]
    asked = [{"role": "<|User|>", "content": "<image>\nWhat is this?"}, {"role": "<|Assistant|>", "content": ""}]
    return dict(preprocessor(images=pictures, conversations=[asked] * batch_size, return_tensors=framework))
