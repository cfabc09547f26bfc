"""How a DeepSeek-V2 is exported: one graph over its latent cache."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from modelwright.export.decoder import DecoderGraph, bounded_positions, decoder_graph, example_inputs, traceable
from modelwright.export.dummies import dummy_texts
from modelwright.export.graphs import Graph, OnnxConfig
from modelwright.families.deepseek_v2.config import DeepseekV2Config


class DeepseekV2OnnxConfig(OnnxConfig):
    """DeepSeek-V2: token ids to the scores of the next token, over the latent cache."""

    config: DeepseekV2Config

    @property
    def max_positions(self) -> int | None:
        return bounded_positions(self.config.rope, self.config.max_position_embeddings)

    def generate_dummy_inputs(
        self,
        preprocessor: Any,
        batch_size: int = 1,
        seq_length: int = -1,
        is_pair: bool = False,
        framework: str | None = None,
    ) -> Mapping[str, Any]:
        """What a tokenizer makes of random words; see :func:`dummy_texts`."""
        return dummy_texts(preprocessor, batch_size, seq_length, is_pair, framework)

    def prepared(self, model: Any) -> AbstractContextManager[None]:
        return traceable(model)

    def graphs(self, model: nn.Module, dtype: torch.dtype) -> Iterator[Graph]:
        module = DecoderGraph(model, self.cache, skips_padding=True)
        yield decoder_graph(self, module, example_inputs(self, dtype))
