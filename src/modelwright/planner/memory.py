"""Bytes on one rank: weights, cache and workspace of serving, or all that a training step holds.

Leaves out what an allocator rounds up, communication buffers, and what a device's own libraries keep.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Self

from modelwright.planner.activations import (
    alive_in_prefill,
    kept_by_tile,
    kept_for_backward,
    kept_scores,
    score_bytes,
)
from modelwright.planner.computing import FLOAT32, INT64
from modelwright.planner.counts import Counts
from modelwright.planner.layout import Layout
from modelwright.planner.precision import BYTES_OF, Precision
from modelwright.planner.shapes import FeedForward, Layer, Linear
from modelwright.planner.stored import WeightFormat
from modelwright.planner.vision import Vision

OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2 + 2 * 4 / 256, "lion": 4.0, "sgd": 0.0}
"""Bytes of state per parameter: AdamW (arXiv:1711.05101) keeps two float32 moments, or two of 8 bits with a float32
scale for each block of 256 (arXiv:2110.02861); Lion (arXiv:2302.06675) one in float32; plain SGD nothing."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by what they hold; what a plan does not need is 0.

    Serving has `kv` and `workspace`: the activations alive at once while the prompts are read, the vision tower's
    where that takes more, and the logits. Training has `gradients`, `optimizer` (states, and a float32 copy of weights
    of a shorter type), `activations` kept for the backward pass, and as `workspace` what is alive for a moment: the
    gathered weights of sharding, and a layer that is computed again or the logits with their gradient.
    """

    weights: int
    kv: int = 0
    workspace: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All of it at once."""
        return sum(self.items().values())

    def items(self) -> dict[str, int]:
        """Part to bytes, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Workload:
    """What the model is asked to do.

    `batch` sequences of `context` tokens on each data-parallel rank: read and then decoded, or, with `optimizer`, a
    micro-batch of training. `recompute` keeps only the inputs of layers and computes the rest again: of all of them, or
    of as many leading ones as it states for each pipeline stage. `explicit` attention writes its scores out; fused
    kernels do not. `tiles` are those of each sequence's pictures. `cached` is whether a training pass fills a cache, as
    those of transformers' Trainer do; `learned` are the tokens whose logits the loss has at once, None all.
    """

    context: int
    batch: int = 1
    optimizer: str | None = None
    recompute: bool | tuple[int, ...] = False
    explicit: bool = False
    tiles: int = 0
    cached: bool = True
    learned: int | None = None


@dataclass(frozen=True)
class Stored:
    """Parameters with the bytes they take; `low` of them have a type shorter than float32."""

    parameters: int = 0
    bytes: int = 0
    low: int = 0

    @classmethod
    def of(cls, parameters: int, dtype: str) -> Self:
        """So many of a floating type."""
        size = BYTES_OF[dtype]
        return cls(parameters, parameters * size, parameters if size < FLOAT32 else 0)

    def shared_by(self, ways: int) -> "Stored":
        """One rank's share, rounded up."""
        return Stored(*(math.ceil(getattr(self, field.name) / ways) for field in fields(self)))

    def times(self, count: int) -> "Stored":
        """So many of these."""
        return Stored(*(count * getattr(self, field.name) for field in fields(self)))

    def __add__(self, other: "Stored") -> "Stored":
        return Stored(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def stage_memory(counts: Counts, layout: Layout, stage: int, precision: Precision, work: Workload) -> Memory:
    """What each rank of pipeline `stage` holds; the ranks of one stage hold equally much."""
    runs = _runs(counts, layout.stages(len(counts.layers))[stage])
    first, last = stage == 0, stage == layout.pipeline - 1
    common, experts = _outside(counts, layout, precision, first, last), Stored()
    largest = 0
    for layer, times in runs:
        rest, routed = _layer_weights(layer, layout, precision)
        common, experts = common + rest.times(times), experts + routed.times(times)
        whole = rest + routed  # one layer gathered in the type of its products, and its gradients
        largest = max(largest, whole.parameters * precision.computed_width + whole.bytes)
    if work.optimizer is None:
        kv = sum(times * _layer_kv(layer, layout, precision, work) for layer, times in runs)
        workspace = _workspace(counts, runs, layout, precision, work, first, last)
        return Memory(common.bytes + experts.bytes, kv, workspace)
    whole = common + experts
    if layout.sharded:
        common, experts = common.shared_by(layout.replicas), experts.shared_by(layout.expert_replicas)
    held = common + experts
    return Memory(
        weights=held.bytes,
        workspace=_training_workspace(counts, runs, layout, stage, precision, work, largest if layout.sharded else 0),
        gradients=whole.bytes if layout.whole_gradients else held.bytes,
        optimizer=math.ceil(held.parameters * OPTIMIZER_BYTES[work.optimizer]) + held.low * FLOAT32,
        activations=_activations(counts, runs, layout, stage, precision, work),
    )


def _runs(counts: Counts, layers: range) -> list[tuple[Layer, int]]:
    """Runs of equal layers with their lengths: models have hundreds of layers and few kinds."""
    held = counts.layers[layers.start : layers.stop]
    return [(layer, len(list(run))) for layer, run in groupby(held)]


def peak_memory(counts: Counts, layout: Layout, precision: Precision, work: Workload) -> Memory:
    """The memory of the stage that holds most."""
    stages = (stage_memory(counts, layout, stage, precision, work) for stage in range(layout.pipeline))
    return max(stages, key=lambda memory: memory.total)


def weight_bytes(counts: Counts, precision: Precision) -> int:
    """Every weight on one device."""
    return stage_memory(counts, Layout(), 0, precision, Workload(context=1)).weights


def kv_bytes_per_token(counts: Counts, precision: Precision) -> int:
    """What one token adds to the cache of all layers on one device."""
    return sum(_layer_kv(layer, Layout(), precision, Workload(context=1)) for layer in counts.layers)


@functools.lru_cache(maxsize=4096)
def _layer_weights(layer: Layer, layout: Layout, precision: Precision) -> tuple[Stored, Stored]:
    """The layer's weights on one rank, but the routed experts, and those."""
    part = layer.feed_forward
    held = Stored.of(layer.norms + layer.attention.norms, precision.norms)
    held += _matrices(layer.attention.linears, layout.model, precision, layer.formats("attention"))
    if isinstance(part, FeedForward):
        return held + _matrices(part.linears, layout.model, precision, layer.formats("dense")), Stored()
    held += Stored.of(sum(gate.parameters for gate in part.gates), precision.weights)
    if part.shared:
        held += _matrices(part.shared.linears, layout.model, precision, layer.formats("shared"))
    one = _matrices(part.expert.linears, layout.expert_model, precision, layer.formats("experts"))
    return held, one.times(part.experts // layout.expert)


def _matrices(
    linears: tuple[Linear, ...], tensor: int, precision: Precision, formats: Mapping[str, WeightFormat]
) -> Stored:
    """Linear layers on one rank, quantized where that is asked for or stored so; their biases are not."""
    held = Stored()
    for linear in linears:
        biases = linear.held(tensor) - replace(linear, bias=False).held(tensor)
        weights = linear.held(tensor) - biases
        low = weights if precision.width < FLOAT32 else 0
        stored = Stored(weights, precision.matrix_bytes(linear, tensor, formats.get(linear.name)), low)
        held += stored + Stored.of(biases, precision.weights)
    return held


def _outside(counts: Counts, layout: Layout, precision: Precision, first: bool, last: bool) -> Stored:
    """Embedding, tower and projector on the first stage, norm and head on the last.

    Rows of the vocabulary are cut by tensor parallelism where it divides them. A tied head is the embedding itself, or
    a copy of it where another stage holds that.
    """
    ways = layout.model if counts.vocab % layout.model == 0 else 1
    held = Stored()
    if first:
        held += Stored.of((counts.vocab // ways + counts.positions) * counts.dim, precision.embedding)
        seen = counts.outside
        held += Stored.of(seen.vision + seen.projector, precision.weights)
    if last:
        held += Stored.of(counts.final_norm, precision.norms)
        if not counts.tied:
            head = replace(counts.head, kept=not precision.head)
            kind = {} if counts.head_format is None else {head.name: counts.head_format}
            held += _matrices((head,), ways, precision, kind)
        elif not first:
            held += Stored.of(counts.head.held(ways), precision.embedding)
    return held


def _layer_kv(layer: Layer, layout: Layout, precision: Precision, work: Workload) -> int:
    """One layer's cache for the sequences of one rank: two vectors per token and held key head."""
    tokens = work.batch * math.ceil(work.context / layout.context)
    vectors = 2 * max(layer.attention.kv_heads // layout.model, 1)
    return precision.kv_bytes(tokens * layer.attention.held_kv_numbers(layout.model), tokens * vectors)


def _workspace(
    counts: Counts,
    runs: list[tuple[Layer, int]],
    layout: Layout,
    precision: Precision,
    work: Workload,
    first: bool,
    last: bool,
) -> int:
    """The widest moment of a prompt being read: in a layer, in the tower, or while a layer's cache is extended."""
    tokens = work.batch * math.ceil(work.context / layout.context)
    moments = [max(_layer_kv(layer, layout, precision, work) for layer, _ in runs)]
    for layer, _ in runs:
        alive = tokens * alive_in_prefill(layer).bytes_of(precision.computed_width, layout.model)
        moments.append(alive + _scores(layer, layout, work))
    if first and counts.vision and work.tiles:
        moments.append(_tower_bytes(counts.vision, precision, work.batch * work.tiles))
    logits = work.batch * counts.vocab * (precision.computed_width + FLOAT32) if last else 0
    return max(moments) + logits


def _scores(layer: Layer, layout: Layout, work: Workload) -> int:
    if not work.explicit:
        return 0
    queries = math.ceil(work.context / layout.context)
    return score_bytes(layer, work.batch, queries, work.context, layout.model)


def _tower_bytes(vision: Vision, precision: Precision, tiles: int) -> int:
    """Pixels and the tower's output of all tiles, and one block's activations for those it sees at once."""
    tower = vision.tower
    pixels = tower.patches * tower.patch.inputs + tower.tokens * tower.patch.outputs
    block = max((alive_in_prefill(block).bytes_of(precision.computed_width) for block in set(tower.blocks)), default=0)
    return tiles * pixels * precision.computed_width + min(tiles, vision.batch) * tower.tokens * block


def _activations(
    counts: Counts, runs: list[tuple[Layer, int]], layout: Layout, stage: int, precision: Precision, work: Workload
) -> int:
    """What the micro-batches in flight keep: with one forward, one backward (1F1B) the first stage has most of them.

    Source: arXiv:2205.05198, section 4 (full recomputation keeps each layer's input; a pipeline of p stages keeps p
    micro-batches on its first).
    """
    tokens, width = _tokens(layout, work), precision.computed_width
    flying = min(layout.micro_batches or layout.pipeline, layout.pipeline - stage)
    spread = layout.model if layout.sequence_parallel else 1
    kept = [_kept(layer, tokens, layout, precision, work) for layer, times in runs for _ in range(times)]
    again = _recomputed(work, stage, len(kept))
    total = again * math.ceil(tokens * counts.dim * width / spread) + sum(kept[again:])
    if stage == 0:
        total += math.ceil(tokens * _kept_before(counts, width) / spread)
        if counts.vision and work.tiles:
            total += work.batch * work.tiles * kept_by_tile(counts.vision, width, work.explicit)
    if stage == layout.pipeline - 1:
        norm = runs[-1][0].computing.norm_of(counts.dim, width) + counts.dim * width
        softmax = math.ceil(tokens * counts.head.outputs / _vocabulary_ways(counts, layout)) * FLOAT32
        if work.learned is not None:  # whose logits are gone, and the gradient of what they are made of is there
            softmax = math.ceil(tokens * counts.dim * width / spread)
        total += math.ceil(tokens * norm / spread) + softmax + tokens * INT64
    return flying * total


def _kept_before(counts: Counts, width: int) -> int:
    """Per token, of the embedding: which rows were read, and the mask of its dropout."""
    how = counts.layers[0].computing
    return INT64 * (2 if counts.positions else 1) + counts.dim * how.mask(width) * how.embedding_dropout


def _training_workspace(
    counts: Counts,
    runs: list[tuple[Layer, int]],
    layout: Layout,
    stage: int,
    precision: Precision,
    work: Workload,
    gathered: int,
) -> int:
    """The most that is alive for a moment in the backward pass, beside what is kept.

    That is a layer's `gathered` weights and gradients and what it keeps where it is computed again, or the logits in
    their own type and their gradient in float32.
    """
    tokens = _tokens(layout, work)
    kept = [_kept(layer, tokens, layout, precision, work) for layer, times in runs for _ in range(times)]
    moments = [gathered + max(kept[: _recomputed(work, stage, len(kept))], default=0)]
    if stage == layout.pipeline - 1:
        ways = _vocabulary_ways(counts, layout)
        learned, each = tokens, precision.computed_width + FLOAT32
        if work.learned is not None:  # float32 logits become their gradient in place
            learned, each = min(work.learned, tokens), each if precision.computed_width < FLOAT32 else FLOAT32
        moments.append(math.ceil(learned * counts.head.outputs / ways) * each)
    return max(moments)


def _tokens(layout: Layout, work: Workload) -> int:
    """Of a micro-batch on one rank."""
    return work.batch * math.ceil(work.context / layout.context)


def _vocabulary_ways(counts: Counts, layout: Layout) -> int:
    return layout.model if counts.vocab % layout.model == 0 else 1


def _recomputed(work: Workload, stage: int, layers: int) -> int:
    """How many of the leading layers of a stage are recomputed."""
    if isinstance(work.recompute, tuple):
        return min(work.recompute[stage], layers)
    return layers if work.recompute else 0


def _kept(layer: Layer, tokens: int, layout: Layout, precision: Precision, work: Workload) -> int:
    """What one layer keeps of a micro-batch: activations, scores, and weights cast to the type of the products."""
    width, spread = precision.computed_width, layout.model if layout.sequence_parallel else 1
    cached = work.cached and not work.recompute
    total = tokens * kept_for_backward(layer, width, work.explicit, cached).on_rank(layout.model, spread)
    if work.explicit:
        queries = math.ceil(work.context / layout.context)
        total += kept_scores(layer, width, work.batch, queries, work.context, layout.model)
    if precision.width != width and not layout.sharded:  # sharded weights are gathered in the type of the products
        common, experts = (_matrices_cast(layer, layout, "rest"), _matrices_cast(layer, layout, "experts"))
        total += (common + experts) * width
    return total


def _matrices_cast(layer: Layer, layout: Layout, which: str) -> int:
    """Numbers of a layer's matrices on one rank: of all but the routed experts, or of those."""
    part = layer.feed_forward
    if which == "experts":
        if isinstance(part, FeedForward):
            return 0
        one = sum(replace(linear, bias=False).held(layout.expert_model) for linear in part.expert.linears)
        return one * (part.experts // layout.expert)
    names = [name for name in layer.parts if name != "experts"]
    return sum(replace(linear, bias=False).held(layout.model) for name in names for linear in layer.parts[name])
