"""How a run is spread over ranks and memory: degrees, what is computed again, what moves to the host."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from modelwright.configs.base import require, require_one_of
from modelwright.configs.run.part import RunPart

Auto = Literal["auto"]
OPERATIONS = (
    "attention_norm",
    "attention",
    "attention.core",
    "ffn_norm",
    "feed_forward",
    "feed_forward.activation",
    "feed_forward.product",
)
"""The operations of a layer that are computed again or moved alone: `attention.core` is the attention of queries to
keys and values, `feed_forward.product` the product of the activated gate and its partner."""
KERNELS = ("matmul", "attention", "topk", "norm", "activation", "softmax")
"""Kinds of kernels of a layer, of which the results of some are kept where the layer is computed again."""
ZERO_BUBBLE = ("zero_bubble", "zbv", "dualpipev")
"""The schedules that split a backward pass by inputs and weights."""
TWO_STAGES = ("zbv", "dualpipev")
"""The schedules that give each rank two stages."""


@dataclass(frozen=True)
class ParallelPart(RunPart):
    """The degrees whose product is the number of ranks, and how each works.

    Attributes:
        data: ranks that read rows of their own, and each hold whole weights.
        shard: ranks that read rows of their own and share out weights, gradients and moments.
        model: ranks that cut each matrix; `sequence` shards norms and the residual stream among them.
        pipeline: stages; `virtual` of them on each rank, `schedule` and `micro_batches` of a step.
        context: ranks that hold slices of each sequence, joined as `context_how` says.
        expert, expert_model: ranks that share out whole experts, and that cut each of them.
        layers_per_group: layers whose weights are gathered together.
        reshard: whether gathered weights are given back between forward and backward.
        offload: whether weights and moments wait in host memory.
        vocabulary: whether `model` ranks cut the embedding and the head by the vocabulary.
        shard_embedding: whether `shard` ranks share out the embedding too.
        shard_gradients: whether gradients are shared out between the micro-batches of a step, and not only after it.
        token_chunks: chunks of tokens that go through a layer so that communication overlaps computation.
        stage_layers: layers of each stage in the order that layers run in; None: dealt evenly.
    """

    data: int | Auto = "auto"
    shard: int | Auto = "auto"
    model: int | Auto = 1
    sequence: bool = True
    pipeline: int | Auto = 1
    virtual: int = 1
    schedule: Literal["1f1b", "gpipe", "interleaved", "looped_bfs", "zero_bubble", "zbv", "dualpipev"] = "1f1b"
    micro_batches: int | None = None
    context: int | Auto = 1
    context_how: Literal["gather", "ring", "ulysses", "hybrid"] = "gather"
    ulysses: int = 1
    expert: int | Auto = 1
    expert_model: int | Auto = 1
    layers_per_group: int = 1
    reshard: bool | Auto = "auto"
    offload: bool = False
    vocabulary: bool = True
    shard_embedding: bool = True
    shard_gradients: bool = False
    token_chunks: int = 1
    stage_layers: tuple[int, ...] | None = None

    def check_rules(self) -> None:
        for name in ("data", "shard", "model", "pipeline", "context", "expert", "expert_model"):
            degree = getattr(self, name)
            require(degree == "auto" or degree >= 1, f"{name} must be at least 1 or auto, got {degree}")
        self.require_at_least(1, "virtual", "micro_batches", "ulysses", "layers_per_group", "token_chunks")
        how, virtual, stages, batches = self.schedule, self.virtual, self.pipeline, self.micro_batches
        require(how not in TWO_STAGES or virtual == 2, f'schedule "{how}" needs virtual 2, got {virtual}')
        if stages == "auto" or batches is None:
            return
        least = stages * virtual if how == "dualpipev" else stages
        called = "pipeline x virtual stages" if how == "dualpipev" else "pipeline, the stages"
        require(batches >= least, f"micro_batches ({batches}) must be at least {called} ({least})")

    @property
    def degrees(self) -> dict[str, int | Auto]:
        """The degrees whose product is the number of ranks; `auto` where the ranks that are left decide."""
        return {name: getattr(self, name) for name in ("data", "shard", "model", "context", "pipeline")}

    def data_ranks(self, ranks: int = 1) -> int:
        """How many of `ranks` ranks read rows of their own; `auto` of another degree counts as 1.

        Raises:
            ConfigError: the degrees do not make so many ranks.
        """
        known = {name: 1 if degree == "auto" else degree for name, degree in self.degrees.items()}
        product = math.prod(known.values())
        open_ended = "auto" in (self.data, self.shard)
        holds = ranks % product == 0 if open_ended else ranks == product
        numbers = ", ".join(f"{name} {degree}" for name, degree in self.degrees.items())
        rule = "divide" if open_ended else "equal"
        require(
            holds,
            f"data x shard x model x context x pipeline ({' x '.join(map(str, known.values()))} = {product}) must "
            f"{rule} the ranks ({ranks}); parallel says {numbers}",
        )
        return ranks // (known["model"] * known["context"] * known["pipeline"])


@dataclass(frozen=True)
class RecomputePart(RunPart):
    """Which activations are computed again in the backward pass.

    Attributes:
        layers: the numbers of the layers that are computed again whole; None: all, or none beside `operations`.
        save: what of them is kept all the same, by kinds of `KERNELS`.
        operations: single `OPERATIONS` that are computed again, each with the numbers of its layers. They are told
            apart by kernels: one norm stands for both, and `attention` and `feed_forward` for the layer.
    """

    layers: tuple[int, ...] | None = None
    save: tuple[str, ...] = ()
    operations: Mapping[str, list[int]] = field(default_factory=dict, hash=False)

    def check_rules(self) -> None:
        for kind in self.save:
            require_one_of("save", kind, KERNELS)
        check_layers(self.layers)
        check_operations(self.operations)


@dataclass(frozen=True)
class SwapPart(RunPart):
    """Activations that wait in host memory between forward and backward.

    Attributes:
        prefetch: how many layers ahead they come back.
        layers: the numbers of the layers whose activations move whole; None: all, or none beside `operations`.
        operations: single `OPERATIONS` whose activations move, each with the numbers of its layers; one inside a module
            stands for all that the module keeps.
    """

    prefetch: int = 1
    layers: tuple[int, ...] | None = None
    operations: Mapping[str, list[int]] = field(default_factory=dict, hash=False)

    def check_rules(self) -> None:
        self.require_at_least(1, "prefetch")
        check_layers(self.layers)
        check_operations(self.operations)


def check_operations(operations: Mapping[str, list[int]]) -> None:
    """Raise a ConfigError for an operation that a layer does not have, or that lists no numbers of layers."""
    for name, numbers in operations.items():
        require_one_of("operations", name, OPERATIONS)
        require(
            isinstance(numbers, list) and all(isinstance(each, int) and each >= 0 for each in numbers),
            f"operations {name} must list numbers of layers from 0 on, got {numbers}",
        )


def check_layers(numbers: tuple[int, ...] | None) -> None:
    """Raise a ConfigError for a number of a layer that is below 0."""
    low = next((number for number in numbers or () if number < 0), None)
    require(low is None, f"layers must be numbers of layers from 0 on, got {low}")
