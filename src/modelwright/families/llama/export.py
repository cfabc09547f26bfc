"""How a Llama is exported: one graph over keys and values, its types moved together, and what a graph cannot say."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from modelwright.errors import ConfigError
from modelwright.export.decoder import DecoderGraph, bounded_positions, decoder_graph, example_inputs, traceable
from modelwright.export.dummies import dummy_texts
from modelwright.export.graphs import Graph, OnnxConfig
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.config.names import DTYPE_FIELDS
from modelwright.families.llama.parts import Types


class LlamaOnnxConfig(OnnxConfig):
    """Llama in both dialects: token ids to the scores of the next token."""

    config: LlamaConfig

    @property
    def max_positions(self) -> int | None:
        return bounded_positions(self.config.rope, self.config.max_position_embeddings)

    @classmethod
    def types(cls, config: LlamaConfig, dtype: str) -> dict[str, Any]:
        """The weights and products in ``dtype``, and the types that go along with it; no other type of 16 bits."""
        moved = copy.deepcopy(config)
        moved.dtype = dtype
        moved.compute_dtype = dtype
        fields = {name: getattr(moved, name) for name in DTYPE_FIELDS if getattr(moved, name) is not None}
        fields = {name: kind if kind == dtype else "float32" for name, kind in fields.items()}
        if config.moe_config.router_dense_type != dtype:
            fields["moe_config"] = {"router_dense_type": "float32"}
        return fields

    @property
    def takes_mask(self) -> bool:
        """Not with ``use_attn_mask_compression``: attention is then causal and nothing else."""
        return not self.config.use_attn_mask_compression

    def check(self) -> None:
        if self.config.use_eod_attn_mask_compression:
            raise ConfigError(
                "use_eod_attn_mask_compression=True packs documents into one row, which a graph with a cache does not "
                "serve: it must be False to export"
            )

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
        module = DecoderGraph(model, self.cache, softmax_dtype=Types.of(self.config).softmax)
        yield decoder_graph(self, module, example_inputs(self, dtype))
