"""`HostPages`, which pages of host memory hold what waiting sequences had computed; it holds numbers, no tensors."""

from collections.abc import Sequence as SequenceOf

from modelwright.engine.blocks import BlockPool
from modelwright.engine.sequence import Sequence
from modelwright.engine.step import Direction, Move


class HostPages:
    """Pages for sequences that lose theirs: each holds them alone, from its preemption until it runs again or ends.

    Args:
        count: how many there are; 0 keeps nothing.
        block_size: tokens in a page, as in the pool on the device.
    """

    def __init__(self, count: int, block_size: int):
        self.pool = BlockPool(count, block_size, reuse=False) if count else None

    @property
    def used(self) -> int:
        """Pages that hold something."""
        return self.pool.usage.used if self.pool else 0

    def store(self, sequence: Sequence) -> list[Move]:
        """Keep what a sequence has computed, all of it or nothing; its pages on the device stay its own until then."""
        assert not sequence.stored, f"{sequence.id} has pages on the host already"
        if self.pool is None or not sequence.computed:
            return []
        pages = self.pool.take(self.pool.pages_for(sequence.computed))
        if pages is None:
            return []
        sequence.stored, sequence.kept = pages, sequence.computed
        return [Move(*pair, Direction.OUT) for pair in zip(sequence.table, pages, strict=False)]

    def restore(self, sequence: Sequence, pages: SequenceOf[int]) -> list[Move]:
        """Bring back the last of a sequence's pages into `pages`, and give up all that it has here."""
        moves = [Move(*pair, Direction.BACK) for pair in zip(sequence.stored[-len(pages) :], pages, strict=True)]
        self.drop(sequence)
        return moves

    def drop(self, sequence: Sequence) -> None:
        """Give up what a sequence has here, if anything."""
        if self.pool is not None:
            self.pool.release(sequence.stored)
        sequence.stored, sequence.kept = [], 0
