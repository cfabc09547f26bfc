"""What one model counts: parameters, cached numbers and FLOPs, summed over its layers; it knows no bytes."""

from dataclasses import dataclass, field, replace

from modelwright.planner.parts import ByPart, summed
from modelwright.planner.shapes import Layer, Linear
from modelwright.planner.stored import ModuleNames, StoredWeights, WeightFormat
from modelwright.planner.vision import Vision


@dataclass(frozen=True)
class Counts:
    """A model as its sizes; everything else is derived.

    `dim` is the width of the residual stream; `vocab` and `positions` are the rows of the token embedding and of the
    learned positions. `layers` are the decoder in order, `final_norm` (parameters) and `head` what follows it. With
    `tied` the head's matrix is the embedding's: it multiplies and adds no parameters (a pipeline's last stage holds a
    copy of `head.parameters`). `vision` stands before the decoder where pictures come in. `names` are those of its
    modules on disk, and `head_format` is how another program has stored the head, where it has quantized it.
    """

    model_type: str
    dim: int
    vocab: int
    layers: tuple[Layer, ...]
    final_norm: int
    head: Linear
    tied: bool = False
    positions: int = 0
    vision: Vision | None = None
    names: ModuleNames = field(default_factory=ModuleNames)
    head_format: WeightFormat | None = None

    def stored_as(self, stored: StoredWeights) -> "Counts":
        """The same model with its matrices in the formats that another program has stored them in."""
        layers = []
        for index, layer in enumerate(self.layers):
            parts = ((part, linear.name) for part, linears in layer.parts.items() for linear in linears)
            kinds = ((f"{part}.{name}", stored.format_of(self.names.of(index, part, name))) for part, name in parts)
            layers.append(replace(layer, stored=tuple((key, kind) for key, kind in kinds if kind is not None)))
        head = None if self.tied else stored.format_of((self.names.head,))
        return replace(self, layers=tuple(layers), head_format=head)

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding and the learned positions."""
        return (self.vocab + self.positions) * self.dim

    @property
    def parameters(self) -> ByPart:
        """Every parameter once; buffers are none."""
        return self.outside + summed([layer.parameters for layer in self.layers])

    @property
    def outside(self) -> ByPart:
        """The parameters that belong to no decoder layer."""
        head = 0 if self.tied else self.head.parameters
        return self._vision + ByPart(embedding=self.embedding, norms=self.final_norm, head=head)

    @property
    def activated(self) -> ByPart:
        """The parameters that one token meets, as the papers count them.

        Of an embedding it reads one row, of the experts those it chooses; the head counts whether it is tied or not,
        and all of tower and projector count, as if the token came from a picture.
        """
        rows = 2 if self.positions else 1
        outside = ByPart(embedding=rows * self.dim, norms=self.final_norm, head=self.head.parameters)
        return self._vision + outside + summed([layer.activated for layer in self.layers])

    @property
    def _vision(self) -> ByPart:
        return self.vision.parameters if self.vision else ByPart()

    @property
    def kv_numbers(self) -> int:
        """Numbers cached per token by all layers."""
        return sum(layer.attention.kv_numbers for layer in self.layers)

    @property
    def mha_kv_numbers(self) -> int:
        """Numbers per token that plain multi-head attention of the same heads would cache."""
        return sum(layer.attention.mha_kv_numbers for layer in self.layers)

    def flops(self, tokens: int, past: int = 0, logits: int | None = None, tiles: int = 0) -> ByPart:
        """Of one pass of `tokens` new tokens of one sequence after `past` cached ones; a batch multiplies them.

        `logits` is of how many tokens the head computes logits, None of all; `tiles` is how many the tower reads.
        """
        rows = tokens if logits is None else logits
        outside = ByPart(head=rows * self.head.flops)
        if self.vision:
            seen = self.vision.flops
            outside += ByPart(vision=tiles * seen.vision, projector=tiles * seen.projector)
        return outside + summed([layer.flops(tokens, past + tokens) for layer in self.layers])

    def prefill(self, tokens: int, tiles: int = 0) -> ByPart:
        """FLOPs of reading a prompt of `tokens`, those of pictures included, with the logits of its last one."""
        return self.flops(tokens, logits=1, tiles=tiles)

    def decode(self, context: int) -> ByPart:
        """FLOPs of the one token that is number `context` of its sequence: it sees that many keys, its own included."""
        return self.flops(1, past=context - 1)
