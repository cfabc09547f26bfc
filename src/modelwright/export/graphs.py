"""What an export is told of a family: its graphs, their inputs, outputs and axes, and how its cache is laid out.

Leaves out the tracing (``trace.py``) and the families themselves (``onnx_configs.py``).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache

Axes = Mapping[int, str]
"""The dynamic axes of one tensor: dimension to name; a sum of names is an axis that follows from the others."""

BATCH, SEQUENCE, PAST, TOTAL = "batch", "sequence", "past", "past + sequence"


@dataclass(frozen=True)
class Part:
    """One of the tensors that a layer caches, ``[batch, heads, past, width]``."""

    name: str
    heads: int
    width: int


@dataclass(frozen=True)
class CacheLayout:
    """What each layer caches: two parts, in the order of a transformers cache's "key" and "value"."""

    layers: int
    parts: tuple[Part, Part]

    def names(self, prefix: str) -> list[str]:
        """``prefix.N.part`` of every layer in turn."""
        return [f"{prefix}.{layer}.{part.name}" for layer in range(self.layers) for part in self.parts]

    def axes(self, prefix: str, length: str) -> dict[str, Axes]:
        """The dynamic axes of every tensor, ``length`` naming that of the tokens."""
        return {name: {0: BATCH, 2: length} for name in self.names(prefix)}

    def pairs(self, tensors: Mapping[str, Any], prefix: str) -> list[tuple[Any, Any]]:
        """Each layer's two tensors among ``tensors``."""
        first, second = (part.name for part in self.parts)
        return [(tensors[f"{prefix}.{n}.{first}"], tensors[f"{prefix}.{n}.{second}"]) for n in range(self.layers)]

    def named(self, pairs: list[tuple[Tensor, Tensor]], prefix: str) -> dict[str, Tensor]:
        """The inverse of :meth:`pairs`."""
        return dict(zip(self.names(prefix), (tensor for pair in pairs for tensor in pair), strict=True))

    def random(self, batch: int, past: int, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
        """Past tensors of standard normal numbers."""
        return {
            f"past.{layer}.{part.name}": torch.randn(batch, part.heads, past, part.width, generator=generator).to(dtype)
            for layer in range(self.layers)
            for part in self.parts
        }


@dataclass(frozen=True)
class Graph:
    """One ONNX file to be made.

    Attributes:
        name: the file's stem.
        module: takes a dict of tensors by input name and returns one by output name; this is what is traced.
        inputs, outputs: names in order, each with its dynamic axes.
        example: an input of every name, each dynamic axis longer than 1 and no two of one length by chance.
        translations: torch operators to the onnxscript functions that stand for them.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]
    example: Mapping[str, Tensor]
    translations: Mapping[Callable, Callable] = field(default_factory=dict)


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

    family: ClassVar[str]
    model_class: ClassVar[type[Any]]

    def __init__(self, config: Any):
        self.config = config
        self.check()

    @property
    def inputs(self) -> Mapping[str, Axes]:
        """What a preprocessor makes and the decoder reads, with its dynamic axes."""
        return {"input_ids": {0: BATCH, 1: SEQUENCE}}

    @property
    def outputs(self) -> Mapping[str, Axes]:
        """What the decoder says, with its dynamic axes."""
        return {"logits": {0: BATCH, 1: SEQUENCE}}

    @property
    @abstractmethod
    def cache(self) -> CacheLayout:
        """What each layer keeps between passes."""

    @property
    @abstractmethod
    def max_positions(self) -> int | None:
        """The tokens that fit into one sequence; None where nothing bounds them."""

    @property
    def vocab_size(self) -> int:
        """Tokens are below it."""
        return self.config.vocab_size

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
