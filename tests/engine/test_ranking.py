"""A ranked list keeps its order whatever comes and goes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.engine.ranking import RankedList
from modelwright.engine.sequence import Sequence


def ranked(rank: tuple[int, int]) -> Sequence:
    sequence = Sequence(str(rank), (1,), 1)
    sequence.rank = rank
    return sequence


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 5)), unique=True), st.data())
def test_it_holds_what_was_added_and_not_removed_in_order(ranks, data):
    sequences, queue = [ranked(rank) for rank in ranks], RankedList()
    for sequence in sequences:
        queue.add(sequence)
    gone = data.draw(st.sets(st.sampled_from(sequences))) if sequences else set()
    for sequence in gone:
        queue.remove(sequence)
    left = sorted((sequence for sequence in sequences if sequence not in gone), key=lambda sequence: sequence.rank)
    assert list(queue) == left and list(reversed(queue)) == left[::-1] and len(queue) == len(left)
    assert [sequence in queue for sequence in sequences] == [sequence not in gone for sequence in sequences]


def test_removing_a_stranger_is_our_mistake():
    queue = RankedList()
    queue.add(ranked((0, 1)))
    with pytest.raises(AssertionError, match=r"\(0, 1\) is not in the list"):
        queue.remove(ranked((0, 1)))
