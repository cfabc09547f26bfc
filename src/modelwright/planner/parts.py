"""Numbers kept apart by the part of the model they belong to; what is counted is said by whoever holds them."""

from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True)
class ByPart:
    """One count for each part of a model: parameters, or FLOPs.

    `embedding` holds token and learned position embeddings; `attention` its projections (as FLOPs: its products too);
    `dense_ffn` the feed-forward of layers without experts; `norms` every norm of the decoder; `vision` the whole tower,
    its norms included; `projector` also the learned rows between picture tiles; `head` nothing where it is tied.
    """

    embedding: int = 0
    attention: int = 0
    dense_ffn: int = 0
    routed_experts: int = 0
    shared_experts: int = 0
    router: int = 0
    norms: int = 0
    vision: int = 0
    projector: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.items().values())

    def items(self) -> dict[str, int]:
        """Part to count, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __add__(self, other: Self) -> Self:
        mine, theirs = self.items(), other.items()
        return type(self)(**{part: mine[part] + theirs[part] for part in mine})


def summed(parts: list[ByPart]) -> ByPart:
    """The sum of any number of counts, part by part."""
    return sum(parts, start=ByPart())
