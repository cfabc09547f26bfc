"""How an ImageGPT is exported: one graph over keys and values."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from modelwright.export.decoder import DecoderGraph, decoder_graph, example_inputs
from modelwright.export.dummies import dummy_pictures
from modelwright.export.graphs import Graph, OnnxConfig
from modelwright.families.imagegpt.config import ImageGPTConfig


class ImageGPTOnnxConfig(OnnxConfig):
    """ImageGPT: colour tokens to the scores of the next colour."""

    config: ImageGPTConfig

    @property
    def max_positions(self) -> int | None:
        return self.config.n_positions

    def generate_dummy_inputs(
        self,
        preprocessor: Any,
        batch_size: int = 1,
        seq_length: int = -1,
        is_pair: bool = False,
        framework: str | None = None,
        num_channels: int = 3,
        image_width: int = 32,
        image_height: int = 32,
    ) -> Mapping[str, Any]:
        """What ``preprocessor`` makes of pictures of random pixels; see :func:`dummy_pictures`."""
        size = (image_width, image_height)
        return dummy_pictures(preprocessor, batch_size, seq_length, is_pair, framework, num_channels, size)

    def graphs(self, model: nn.Module, dtype: torch.dtype) -> Iterator[Graph]:
        module = DecoderGraph(model, self.cache, upcast=self.config.reorder_and_upcast_attn)
        yield decoder_graph(self, module, example_inputs(self, dtype))
