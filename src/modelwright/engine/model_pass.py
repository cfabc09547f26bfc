"""`ModelPass`, one forward pass in plain numbers, so that every rank can compute it; without requests and model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from modelwright.engine.step import Chunk, Move


@dataclass(frozen=True)
class ModelPass:
    """Tokens of several sequences, packed into a row.

    Attributes:
        tokens, positions: of the row.
        counts, ends, tables: of each sequence, its tokens in the row, its keys with them, and its pages.
        places: which tokens of the row get logits.
        moves: of pages, before the pass.
        embeds: ``[1, tokens, hidden]``, the row's embeddings where rows of pictures stand among them.
    """

    tokens: list[int]
    positions: list[int]
    counts: list[int]
    ends: list[int]
    tables: list[Sequence[int]]
    places: list[int]
    moves: tuple[Move, ...]
    embeds: Tensor | None = None

    @classmethod
    def of(cls, chunks: Sequence[Chunk], places: list[int], moves: tuple[Move, ...]) -> Self:
        """The chunks one after the other."""
        return cls(
            tokens=[token for chunk in chunks for token in chunk.sequence.tokens[chunk.start : chunk.end]],
            positions=[position for chunk in chunks for position in range(chunk.start, chunk.end)],
            counts=[chunk.count for chunk in chunks],
            ends=[chunk.end for chunk in chunks],
            tables=[chunk.sequence.table for chunk in chunks],
            places=places,
            moves=moves,
        )

    def on_host(self) -> Self:
        """The same with nothing on a device, as it goes to other ranks."""
        return self if self.embeds is None else replace(self, embeds=self.embeds.cpu())
