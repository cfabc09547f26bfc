"""What an export is told of a family: its graphs, their inputs, outputs and axes.

Leaves out the tracing (``trace.py``), and how the families say it (their ``export.py``).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from modelwright.errors import ConfigError
from modelwright.export.cache_tensors import BATCH, Axes, CacheTensors
from modelwright.families import causal_family, families, family_of, resolve

SEQUENCE, PAST, TOTAL = "sequence", "past", "past + sequence"


@dataclass(frozen=True)
class Graph:
    """One ONNX file to be made.

    Attributes:
        name: the file's stem.
        module: takes a dict of tensors by input name and returns one by output name; this is what is traced.
        inputs, outputs: names in order, each with its dynamic axes.
        example: an input of every name, each dynamic axis longer than 1 and no two of one length by chance.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]
    example: Mapping[str, Tensor]


@dataclass(frozen=True)
class Pass:
    """Inputs of one graph and what the model makes of them, both by name; ``shape`` says their lengths in words."""

    graph: str
    shape: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class OnnxConfig(ABC):
    """How one family is exported; made from the model's config, as transformers' class of this name was.

    Raises:
        ConfigError: by the constructor, where the graph could not say what the config asks for.
    """

    def __init__(self, config: Any):
        self.config = config
        self.check()

    @property
    def family(self) -> str:
        """The ``model_type`` that the folder of graphs names."""
        return family_of(self.config).model_type

    @property
    def inputs(self) -> Mapping[str, Axes]:
        """What a preprocessor makes and the decoder reads, with its dynamic axes."""
        return {"input_ids": {0: BATCH, 1: SEQUENCE}}

    @property
    def outputs(self) -> Mapping[str, Axes]:
        """What the decoder says, with its dynamic axes."""
        return {"logits": {0: BATCH, 1: SEQUENCE}}

    @property
    def cache(self) -> CacheTensors:
        """What each layer keeps between passes."""
        return CacheTensors(resolve(family_of(self.config).cache)(self.config.get_text_config()))

    @property
    @abstractmethod
    def max_positions(self) -> int | None:
        """The tokens that fit into one sequence; None where nothing bounds them."""

    @property
    def vocab_size(self) -> int:
        """Tokens are below it."""
        return self.config.get_text_config().vocab_size

    @property
    def takes_mask(self) -> bool:
        """Whether the decoder reads an ``attention_mask``; otherwise every token is real."""
        return True

    @property
    def graph_inputs(self) -> dict[str, Axes]:
        """All inputs of the decoder graph, in order."""
        mask = {"attention_mask": {0: BATCH, 1: TOTAL}} if self.takes_mask else {}
        return {**self.inputs, **mask, **self.cache.axes("past", PAST)}

    @property
    def graph_outputs(self) -> dict[str, Axes]:
        """All outputs of the decoder graph, in order."""
        return {**self.outputs, **self.cache.axes("present", TOTAL)}

    @abstractmethod
    def generate_dummy_inputs(
        self,
        preprocessor: Any,
        batch_size: int = 1,
        seq_length: int = -1,
        is_pair: bool = False,
        framework: str | None = None,
    ) -> Mapping[str, Any]:
        """What ``preprocessor`` makes of random content: keyword arguments of the model's forward pass."""

    @abstractmethod
    def graphs(self, model: nn.Module, dtype: torch.dtype) -> Iterator[Graph]:
        """The graphs of ``model``, the decoder first, made one at a time; ``dtype`` is that of the cache."""

    def prepared(self, model: nn.Module) -> AbstractContextManager[Any]:
        """``model`` with whatever cannot be traced exchanged for what can, undone at the end."""
        return nullcontext()

    @classmethod
    def types(cls, config: Any, dtype: str) -> dict[str, Any]:
        """The fields of ``config`` that name types, as a model exported in ``dtype`` has them."""
        return {}

    def check(self) -> None:  # noqa: B027  # most families have nothing to refuse
        """Raise a ``ConfigError`` for what the graphs cannot say."""

    def content(self, model: Any, ids: Tensor) -> dict[str, Tensor]:
        """What the decoder reads of ``ids`` ``[batch, tokens]``, by :attr:`inputs`."""
        return {"input_ids": ids}

    def other_passes(self, model: Any, generator: torch.Generator) -> Iterator[Pass]:
        """Drawn passes through each graph beside the decoder: what onnxruntime is compared with there."""
        return iter(())

    def run(self, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The decoder graph's outputs by the model's own forward pass: what onnxruntime is compared with."""
        pairs = self.cache.pairs(inputs, "past")
        cache: Any = DynamicCache()
        if pairs[0][0].shape[2]:
            for layer, pair in enumerate(pairs):
                cache.update(*pair, layer)
        plain = {name: tensor for name, tensor in inputs.items() if name in (*self.inputs, "attention_mask")}
        with torch.no_grad():
            logits = model(**plain, cache=cache, use_cache=True).logits
        kept = [(layer.keys, layer.values) for layer in cache.layers]
        return {"logits": logits, **self.cache.named(kept, "present")}


def onnx_config_class(model_class: type[Any]) -> type[OnnxConfig]:
    """How models of ``model_class`` are exported.

    Raises:
        ConfigError: they are not: only models that say a next token are.
    """
    family = causal_family(model_class)
    if family is None or family.export is None:
        served = ", ".join(family.causal for family in families() if family.export is not None)
        raise ConfigError(f"{model_class.__name__} is not exported: a graph with a cache serves {served}")
    return resolve(family.export)
