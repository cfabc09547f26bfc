"""What one model counts: parameters, cached numbers and FLOPs, summed over its layers; it knows no bytes."""

from dataclasses import dataclass

from modelwright.planner.parts import ByPart, summed
from modelwright.planner.shapes import Layer, Linear


@dataclass(frozen=True)
class Counts:
    """A language model as its sizes; everything else is derived.

    `dim` is the width of the residual stream and `vocab` the rows of the token embedding. `embedding` are the
    parameters before the first layer, `layers` the decoder in order, `final_norm` and `head` what follows it. With
    `tied` the head's matrix is the embedding's: it multiplies and adds no parameters (a pipeline's last stage holds a
    copy of `head.parameters`).
    """

    model_type: str
    dim: int
    vocab: int
    embedding: int
    layers: tuple[Layer, ...]
    final_norm: int
    head: Linear
    tied: bool = False

    @property
    def parameters(self) -> ByPart:
        """Every parameter once; buffers are none."""
        return self.outside + summed([layer.parameters for layer in self.layers])

    @property
    def outside(self) -> ByPart:
        """The parameters that belong to no decoder layer."""
        head = 0 if self.tied else self.head.parameters
        return ByPart(embedding=self.embedding, norms=self.final_norm, head=head)

    @property
    def activated(self) -> ByPart:
        """The parameters that one token meets: of the embedding it reads one row, of the experts those it chooses.

        The head counts whether it is tied or not.
        """
        outside = ByPart(embedding=self.dim, norms=self.final_norm, head=self.head.parameters)
        return outside + summed([layer.activated for layer in self.layers])

    @property
    def kv_numbers(self) -> int:
        """Numbers cached per token by all layers."""
        return sum(layer.attention.kv_numbers for layer in self.layers)

    @property
    def mha_kv_numbers(self) -> int:
        """Numbers per token that plain multi-head attention of the same heads would cache."""
        return sum(layer.attention.mha_kv_numbers for layer in self.layers)

    def flops(self, tokens: int, past: int = 0, logits: int | None = None) -> ByPart:
        """Of one pass of `tokens` new tokens of one sequence after `past` cached ones; a batch multiplies them.

        `logits` is of how many tokens the head computes logits, None of all.
        """
        rows = tokens if logits is None else logits
        return ByPart(head=rows * self.head.flops) + summed(
            [layer.flops(tokens, past + tokens) for layer in self.layers]
        )

    def prefill(self, tokens: int) -> ByPart:
        """FLOPs of reading a prompt of `tokens`, with the logits of its last one."""
        return self.flops(tokens, logits=1)

    def decode(self, context: int) -> ByPart:
        """FLOPs of the one token that is number `context` of its sequence: it sees that many keys, its own included."""
        return self.flops(1, past=context - 1)
