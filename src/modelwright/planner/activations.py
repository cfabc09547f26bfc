"""Memory of what a pass computes: the workspace of a prompt read, and what training keeps for its backward pass.

Everything is per token of one layer, in numbers, split in two: `whole` stays the same on every rank of tensor
parallelism, `cut` is divided by it. For training each operation keeps its inputs, as counted term by term for a
feed-forward without a gate in arXiv:2205.05198, section 4.1 (34 bytes per token and channel, of which selective
recomputation leaves the attention scores out, as fused kernels do). A prompt keeps only what is alive at once.
"""

import math
from dataclasses import dataclass

from modelwright.planner.shapes import ExpertFeedForward, FeedForward, LatentAttention, Layer

SCORE_MATRICES = 2
"""float32 matrices ``[heads, tokens, keys]`` alive where attention is written out: the scores and their softmax."""
FLOAT32 = 4


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


def kept_for_backward(layer: Layer) -> Numbers:
    """What one layer keeps per token: the inputs of its two norms and all that its two halves read again."""
    return Numbers(whole=2 * _dim(layer)) + _kept_by_attention(layer) + _kept_by_feed_forward(layer)


def _kept_by_attention(layer: Layer) -> Numbers:
    """The normed input, queries, keys and values as attended to, and what the output projection reads."""
    attention = layer.attention
    if not isinstance(attention, LatentAttention):
        wide = attention.head_dim * (2 * attention.heads + 2 * attention.kv_heads)
        return Numbers(whole=attention.dim, cut=wide)
    wide = attention.heads * 2 * (attention.nope + attention.rope + attention.v_dim)
    latents = 2 * (attention.kv_rank + (attention.q_rank or 0)) + attention.rope  # before and after their norms
    return Numbers(whole=attention.dim + latents, cut=wide)


def _kept_by_feed_forward(layer: Layer) -> Numbers:
    part = layer.feed_forward
    if isinstance(part, FeedForward):
        return Numbers(whole=part.dim, cut=_kept_width(part))
    shared = _kept_width(part.shared) if part.shared else 0
    routed = Numbers(whole=2 * part.chosen * part.expert.dim, cut=part.chosen * _kept_width(part.expert))
    scores = Numbers(float32=part.experts)
    return Numbers(whole=part.expert.dim, cut=shared) + routed + scores


def _kept_width(part: FeedForward) -> int:
    """With a gate: its product, that activated, up, and both multiplied; without: before and after the activation."""
    return (4 if part.gated else 2) * part.width


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
