"""Memory of what a pass computes: the workspace of a prompt read, and what training keeps for its backward pass.

Everything is per token of one layer, split in two: `whole` stays the same on every rank of tensor parallelism, `cut` is
divided by it. For training each operation keeps its inputs, or its result where the gradient follows from that; as
counted term by term in arXiv:2205.05198, section 4.1, whose layer keeps `s b h (34 + 5 a s / h)` bytes. Attention by a
fused kernel keeps queries, keys, values, its result and one number per query and head instead of the scores, which that
paper's selective recomputation leaves out too. A prompt keeps only what is alive at once.
"""

import math
from dataclasses import dataclass

from modelwright.planner.computing import FLOAT32, INT64, Computing
from modelwright.planner.shapes import ExpertFeedForward, FeedForward, LatentAttention, Layer
from modelwright.planner.vision import Vision

SCORE_MATRICES = 2
"""float32 matrices ``[heads, tokens, keys]`` alive where attention is written out: the scores and their softmax."""


@dataclass(frozen=True)
class Kept:
    """Bytes per token that one rank keeps: `whole`, and `cut` divided by tensor parallelism."""

    whole: float = 0
    cut: float = 0

    def on_rank(self, tensor: int = 1, whole_ways: int = 1) -> int:
        """Of one rank; `whole_ways` cut even the whole ones."""
        return math.ceil(self.whole / whole_ways + self.cut / tensor)

    def __add__(self, other: "Kept") -> "Kept":
        return Kept(self.whole + other.whole, self.cut + other.cut)


def kept_for_backward(layer: Layer, width: int, explicit: bool = False, cached: bool = False) -> Kept:
    """What one layer keeps per token where a number has `width` bytes; of `explicit` attention without its scores.

    `cached` is whether the pass fills a cache, as transformers' models do unless something is recomputed.
    """
    norms = Kept(2 * layer.computing.norm_of(layer.attention.dim, width))
    return norms + _kept_by_attention(layer, width, explicit, cached) + _kept_by_feed_forward(layer, width)


def _kept_by_attention(layer: Layer, width: int, explicit: bool, cached: bool) -> Kept:
    """The normed input, queries, keys and values as attended to, and what the output projection reads."""
    attention, how = layer.attention, layer.computing
    residual = attention.dim * how.mask(width) * how.residual_dropout
    sums = 0 if explicit else attention.heads * FLOAT32
    if not isinstance(attention, LatentAttention):
        rotary = width if how.rotary_bytes is None else how.rotary_bytes
        tables = 4 * attention.head_dim * rotary * attention.turned_by_matrix  # of queries and keys, for each layer
        key_heads = attention.heads if explicit else attention.kv_heads  # written out, each query head has its own
        copies = 2 * attention.kv_heads if cached and how.merged_and_cached and not explicit else 0
        wide = attention.head_dim * (2 * attention.heads + 2 * key_heads + copies)
        return Kept(attention.dim * width + tables + residual, wide * width + sums)
    latent = attention.kv_rank * width + how.norm_of(attention.kv_rank, width)
    if how.norm_bytes in (None, width):
        latent += attention.rope * width  # the norm keeps a part of the projection, and so all of it
    query = 0.0
    if attention.q_rank is not None:
        query = attention.q_rank * width + how.norm_of(attention.q_rank, width)
    values = attention.v_dim if explicit else attention.nope + attention.v_dim  # a part of the projection out of it
    wide = attention.heads * (2 * (attention.nope + attention.rope) + values + attention.v_dim)
    return Kept(attention.dim * width + latent + query + residual, wide * width + sums)


def _kept_by_feed_forward(layer: Layer, width: int) -> Kept:
    part, how = layer.feed_forward, layer.computing
    if isinstance(part, FeedForward):
        return Kept(part.dim * width, _kept_width(part, how, width)) + _output_mask(layer, part.dim, width)
    shared = Kept()
    if part.shared:
        shared = Kept(cut=_kept_width(part.shared, how, width)) + _output_mask(layer, part.shared.dim, width)
    if part.shared_gate:
        shared += Kept((part.expert.dim + 1) * width)
    return Kept(part.expert.dim * width) + shared + _kept_by_experts(part, how, width)


def _kept_by_experts(part: ExpertFeedForward, how: Computing, width: int) -> Kept:
    """Scores in float32; of each choice its numbers, its row gathered, and its result before and after it is put back
    in the order of the tokens."""
    router = 0 if width == FLOAT32 else part.expert.dim * FLOAT32  # which reads its own copy of the tokens
    each = 3 * INT64 + FLOAT32  # which expert, which token, which place, and the weight
    rows = part.chosen * (3 * part.expert.dim * width + each + part.expert.dim * how.mask(width) * how.hidden_dropout)
    return Kept(router + part.experts * FLOAT32 + rows, part.chosen * _kept_width(part.expert, how, width))


def _kept_width(part: FeedForward, how: Computing, width: int) -> float:
    """Bytes of hidden units: what the activation keeps, and with a gate up and the activated gate; what down reads."""
    numbers = how.kept_by_activation + (3 if part.gated else 1)
    return part.width * (numbers * width + how.mask(width) * how.hidden_dropout)


def _output_mask(layer: Layer, dim: int, width: int) -> Kept:
    how = layer.computing
    return Kept(dim * how.mask(width) * (how.hidden_dropout or how.residual_dropout))


def kept_scores(layer: Layer, width: int, batch: int, tokens: int, keys: int, tensor: int = 1) -> int:
    """What written-out attention keeps of its scores, in bytes.

    That is their softmax, the weights that multiply the values where they have another type or were dropped, the mask
    of dropout, and which keys a query sees.
    """
    how = layer.computing
    softmax = width if how.softmax_bytes is None else how.softmax_bytes
    weights = width if softmax != width or how.attention_dropout else 0
    each = softmax + weights + how.mask(width) * how.attention_dropout
    causal = tokens * keys if how.causal_mask else 0
    return batch * math.ceil(layer.attention.heads / tensor) * tokens * keys * each + causal


def kept_by_tile(vision: Vision, width: int, explicit: bool) -> int:
    """What training keeps of one tile: its pixels, the tower's blocks and last norm, and the projector's inputs."""
    tower = vision.tower
    pixels = tower.patches * tower.patch.inputs * width
    blocks = sum(tower.tokens * kept_for_backward(block, width, explicit).on_rank() for block in tower.blocks)
    if explicit:
        blocks += sum(kept_scores(block, width, 1, tower.tokens, tower.tokens) for block in tower.blocks)
    last = sum(tower.tokens * block.computing.norm_of(block.attention.dim, width) for block in tower.blocks[-1:])
    inputs = sum(rows.count * rows.linear.inputs * width for rows in vision.projector)
    hidden = sum(rows.count * rows.linear.outputs * width for rows in vision.projector[:-1])  # before their activation
    return math.ceil(pixels + blocks + last + inputs + hidden)


@dataclass(frozen=True)
class Numbers:
    """Numbers per token on one rank: `whole`, and `cut` divided by tensor parallelism, both in the model's own type;
    `float32` are whole ones that are computed in that type whatever the model's."""

    whole: int = 0
    cut: int = 0
    float32: int = 0

    def bytes_of(self, width: int, tensor: int = 1, whole_ways: int = 1) -> int:
        """Bytes of one token where a number has `width` bytes; `whole_ways` cut even the whole ones."""
        whole = math.ceil((self.whole * width + self.float32 * FLOAT32) / whole_ways)
        return whole + math.ceil(self.cut * width / tensor)

    def __add__(self, other: "Numbers") -> "Numbers":
        return Numbers(self.whole + other.whole, self.cut + other.cut, self.float32 + other.float32)


def alive_in_prefill(layer: Layer) -> Numbers:
    """The most that one layer has alive per token while a prompt is read, the residual stream included."""
    return max(_alive_in_attention(layer), _alive_in_feed_forward(layer), key=lambda alive: alive.bytes_of(2))


def _alive_in_attention(layer: Layer) -> Numbers:
    """Stream and normed input; queries and keys before and after rotation; values; the result."""
    attention = layer.attention
    stream = Numbers(whole=2 * attention.dim)
    if not isinstance(attention, LatentAttention):
        return stream + Numbers(cut=attention.head_dim * (3 * attention.heads + 3 * attention.kv_heads))
    per_head = 2 * (attention.nope + attention.rope) + attention.rope  # projected and joined queries, the turned part
    per_head += attention.nope + attention.v_dim  # expanded keys and values
    per_head += attention.nope + attention.rope + attention.v_dim  # keys joined with the turned part, the result
    latents = 2 * (attention.kv_rank + attention.rope)
    return stream + Numbers(whole=latents, cut=attention.heads * per_head)


def _alive_in_feed_forward(layer: Layer) -> Numbers:
    """Stream and normed input; the activated gate, up and their product; for experts, rows per choice."""
    part = layer.feed_forward
    stream = Numbers(whole=2 * _dim(layer))
    if isinstance(part, FeedForward):
        return stream + Numbers(cut=(3 if part.gated else 2) * part.width)
    return stream + _alive_in_experts(part)


def _alive_in_experts(part: ExpertFeedForward) -> Numbers:
    """The larger of: rows gathered and projected; rows computed, put back in order and weighted in float32."""
    rows, width = part.chosen * part.expert.dim, part.chosen * part.expert.width
    projecting = Numbers(whole=rows, cut=(4 if part.expert.gated else 2) * width)
    summing = Numbers(whole=2 * rows, cut=width, float32=rows)
    return max(projecting, summing, key=lambda alive: alive.bytes_of(2))


def score_bytes(layer: Layer, batch: int, tokens: int, keys: int, tensor: int = 1) -> int:
    """Where attention is written out instead of fused: its scores in float32, twice."""
    return SCORE_MATRICES * FLOAT32 * batch * math.ceil(layer.attention.heads / tensor) * tokens * keys


def _dim(layer: Layer) -> int:
    return layer.attention.dim
