"""FLOPs of a training step: those of the forward pass, and of the gradients that it asks for; recomputing adds none.

A product of a matrix of weights costs the same again for the gradient of its input and again for that of the weights,
and one of two activations (scores, and what they weigh) costs twice the same again, for both its inputs. So a model
that is trained whole costs three times its forward pass, but for the first product of a picture, whose input is the
picture. What is computed for labels that do not count, for padding, or a second time is not counted: model FLOPs, as
PaLM (arXiv:2204.02311, appendix B) and Megatron-LM (arXiv:2205.05198) divide them by a device's peak.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields

from modelwright.planner.counts import Counts
from modelwright.planner.parts import ByPart, summed
from modelwright.planner.shapes import ExpertFeedForward, Layer
from modelwright.planner.vision import Vision

PARTS: frozenset[str] = frozenset(part.name for part in fields(ByPart))
_BELOW_LAYERS = {"embedding", "vision", "projector"}


def training_flops(
    counts: Counts,
    tokens: int,
    tiles: int = 0,
    *,
    trained: Collection[str] = PARTS,
    adapted: Mapping[str, int] | None = None,
    learned: int | None = None,
) -> ByPart:
    """Of one document of `tokens` tokens, `tiles` of which the tower reads, forward and backward.

    Args:
        trained: the parts whose weights are trained, by the names of `ByPart`; gradients flow down to the input of the
            first layer, or farther where the embedding or what stands before it is trained.
        adapted: low-rank matrices beside the frozen weights of parts of the decoder, as how many numbers they have over
            all layers. They are trained, and gradients flow past the weights.
        learned: labels that the head computes logits for; None for all tokens.
    """
    trained, adapters = set(trained), dict(adapted or {})
    below = trained & (_BELOW_LAYERS if tiles else {"embedding"})
    inside = bool(below or (trained | adapters.keys()) - _BELOW_LAYERS - {"head"})
    rows = tokens if learned is None else learned
    head = _of_weights(rows * counts.head.flops, inside, ("embedding" if counts.tied else "head") in trained)
    total = ByPart(head=head) + summed([_layer(layer, tokens, inside, trained) for layer in counts.layers])
    total += ByPart(**{part: 6 * tokens * _met(counts, part, numbers) for part, numbers in adapters.items()})
    if counts.vision is not None and tiles:
        total += _vision(counts.vision, tiles, trained)
    return total


def _met(counts: Counts, part: str, numbers: int) -> int:
    """Of the numbers that a part has, how many a token meets."""
    if part != "routed_experts":
        return numbers
    experts, chosen = next((f.experts, f.chosen) for f in _routers(counts))
    return numbers * chosen // experts


def _routers(counts: Counts) -> Iterator[ExpertFeedForward]:
    return (layer.feed_forward for layer in counts.layers if isinstance(layer.feed_forward, ExpertFeedForward))


def _of_weights(forward: int, flows: bool, trains: bool) -> int:
    return forward * (1 + flows + trains)


def _layer(layer: Layer, tokens: int, flows: bool, trained: Collection[str]) -> ByPart:
    forward = layer.flops(tokens, tokens)
    weights = tokens * sum(linear.flops for linear in layer.attention.linears)
    turned = tokens * layer.attention.turned_flops
    products = forward.attention - weights - turned
    spent = {part: _of_weights(flops, flows, part in trained) for part, flops in forward.items().items() if flops}
    spent["attention"] = _of_weights(weights, flows, "attention" in trained)
    spent["attention"] += turned * (1 + flows) + products * (1 + 2 * flows)
    return ByPart(**spent)


def _vision(vision: Vision, tiles: int, trained: Collection[str]) -> ByPart:
    tower, trains = vision.tower, "vision" in trained
    patches = _of_weights(tower.patches * tower.patch.flops, False, trains)
    within = PARTS if trains else ()  # the parts of a block are all of them the tower's
    blocks = [_layer(block, tower.tokens, trains, within) for block in tower.blocks]
    forward = [block.flops(tower.tokens, tower.tokens).total for block in tower.blocks]
    rest = vision.flops.vision - tower.patches * tower.patch.flops - sum(forward)
    seen = patches + sum(block.total for block in blocks) + _of_weights(rest, trains, trains)
    learns = "projector" in trained
    projector = sum(
        _of_weights(rows.flops, trains or (learns and place > 0), learns) for place, rows in enumerate(vision.projector)
    )
    return ByPart(vision=tiles * seen, projector=tiles * projector)
