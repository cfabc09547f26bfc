"""`RankedList`, sequences in the order of their rank; who ranks where is the scheduler's to say."""

from bisect import bisect_left, insort
from collections.abc import Iterator

from modelwright.engine.sequence import Sequence


def rank_of(sequence: Sequence) -> tuple[int, int]:
    """The sort key."""
    return sequence.rank


class RankedList:
    """Sequences sorted by `Sequence.rank`, which is unique and does not change while they are in."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        insort(self._sequences, sequence, key=rank_of)

    def remove(self, sequence: Sequence) -> None:
        assert sequence in self, f"{sequence.id} is not in the list"
        del self._sequences[self._place(sequence)]

    def _place(self, sequence: Sequence) -> int:
        return bisect_left(self._sequences, sequence.rank, key=rank_of)

    def __contains__(self, sequence: Sequence) -> bool:
        place = self._place(sequence)
        return place < len(self._sequences) and self._sequences[place] is sequence

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __reversed__(self) -> Iterator[Sequence]:
        return reversed(self._sequences)

    def __len__(self) -> int:
        return len(self._sequences)
