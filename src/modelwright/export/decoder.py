"""The decoder as it is traced: past tensors in, logits and present tensors out; one graph for prefill and decode."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from modelwright.configs.rope import RopeSettings
from modelwright.export.attention import GraphAttention, visible
from modelwright.export.cache_tensors import CacheTensors
from modelwright.export.experts import traceable_experts
from modelwright.export.graphs import Graph, OnnxConfig
from modelwright.layers import RotaryEmbedding, Rotation
from modelwright.ops.rotary import rope_table, rotate_by_matrix, rotate_half_split

KEPT = "kept_tokens"
"""The traced input that ``trace.py`` replaces by what ``logits_to_keep`` says: the indices of tokens with logits."""

EXAMPLE = {"batch": 2, "sequence": 3, "past": 5}
"""Lengths of the traced example: none is 0 or 1, which tracing would take for constants."""
GROWING = ("dynamic", "dynamic_ntk")
"""The kinds of rotation whose frequencies depend on how long the sequence is."""


class DecoderGraph(nn.Module):
    """A causal model over tensors by name, see :attr:`OnnxConfig.graph_inputs`.

    Args:
        model: any of ours with ``attention``, ``position_ids`` and ``tokens_to_keep`` in its forward pass.
        cache: how its layers cache.
        skips_padding: positions count real tokens only; otherwise they run from the past, padding included.
        how: keyword arguments of :class:`GraphAttention`.
    """

    def __init__(
        self,
        model: nn.Module,
        cache: CacheTensors,
        skips_padding: bool = False,
        **how: Any,
    ):
        super().__init__()
        self.model, self.cache, self.skips_padding, self.how = model, cache, skips_padding, how

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by input name to tensors by output name."""
        pairs = self.cache.pairs(inputs, "past")
        mask = inputs.get("attention_mask")
        content = {name: inputs[name] for name in ("input_ids", "inputs_embeds") if name in inputs}
        [tokens] = [tensor.shape[1] for tensor in content.values()]
        past, device = pairs[0][0].shape[2], pairs[0][0].device
        attention = GraphAttention(visible(mask, tokens, past, device), pairs, **self.how)
        logits = self.model(
            **content,
            position_ids=self._positions(mask, pairs[0][0].shape[0], tokens, past, device),
            attention=attention,
            use_cache=False,
            tokens_to_keep=inputs[KEPT],
        ).logits
        return {"logits": logits, **self.cache.named(attention.present, "present")}

    def _positions(self, mask: Tensor | None, batch: int, tokens: int, past: int, device: torch.device) -> Tensor:
        """``[batch, tokens]``; padding that is not counted stands at position 1, as where the model counts itself."""
        own = torch.arange(tokens, device=device) + past
        if mask is None or not self.skips_padding:
            return own.expand(batch, -1)
        counted = (mask.long().cumsum(dim=-1) - 1).masked_fill(mask == 0, 1)
        return counted.index_select(1, own)


class GraphRotary(nn.Module):
    """A :class:`RotaryEmbedding` for a graph: its frequencies are torch's own to the last bit where they are constant.

    Halves are exchanged by slices, also where the model does so by a matrix: the numbers are the same.
    """

    def __init__(self, rotary: RotaryEmbedding):
        super().__init__()
        self.rotary = rotary
        self.softmax_gain = rotary.softmax_gain
        self.rotate = rotate_half_split if rotary.rotate is rotate_by_matrix else rotary.rotate
        self.frequencies: Tensor | None
        constant = None if rotary.kind in GROWING else rotary.frequencies(torch.zeros(1, 1, dtype=torch.long))
        self.register_buffer("frequencies", constant)

    def forward(self, positions: Tensor) -> Rotation:
        """See :class:`RotaryEmbedding`."""
        if self.frequencies is None:
            rotation = self.rotary(positions)
            return Rotation(rotation.cos, rotation.sin, self.rotate)
        cos, sin = rope_table(positions, self.frequencies, self.rotary.scale)
        return Rotation(cos.to(self.rotary.dtype), sin.to(self.rotary.dtype), self.rotate)


@contextmanager
def traceable(model: Any) -> Iterator[None]:
    """A causal model with :class:`GraphRotary`, and experts that are routed at run time; undone at the end."""
    decoder, rotary = model.model, model.model.rotary
    decoder.rotary = GraphRotary(rotary)
    try:
        with traceable_experts(model):
            yield
    finally:
        decoder.rotary = rotary


def bounded_positions(rope: RopeSettings, trained: int) -> int | None:
    """``trained``, or None where the rotation grows with the sequence, which is meant to leave it behind."""
    grows = rope.scaling is not None and rope.scaling.kind in GROWING
    return None if grows else trained


def example_inputs(config: OnnxConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """The decoder's inputs as they are traced: every token real, the cache in ``dtype``."""
    batch, tokens, past = EXAMPLE.values()
    numbers = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (batch, tokens), generator=numbers)
    example = {"input_ids": ids, "attention_mask": torch.ones(batch, past + tokens, dtype=torch.long)}
    return example | config.cache.random(batch, past, dtype, numbers)


def decoder_graph(config: OnnxConfig, module: DecoderGraph, example: Mapping[str, Tensor]) -> Graph:
    """The decoder's graph, whose logits may be those of a few tokens."""
    inputs = {**config.graph_inputs, KEPT: {0: "kept"}}
    chosen = {name: example[name] for name in config.graph_inputs} | {KEPT: torch.arange(2)}
    return Graph("decoder", module, inputs, config.graph_outputs, chosen)
