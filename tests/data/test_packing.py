"""Which documents share a row."""

from hypothesis import given
from hypothesis import strategies as st

from modelwright.data.packing import pack


@given(st.lists(st.integers(1, 20), max_size=40))
def test_every_document_has_one_row_that_holds_it(lengths):
    rows = pack(lengths, 20)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= 20 for row in rows)
    assert rows == sorted(sorted(row) for row in rows)
    least = -(-sum(lengths) // 20)
    assert least <= len(rows) <= max(1, 11 / 9 * least + 1) + 1 or not lengths  # best fit decreasing is this good


def test_the_least_room_that_is_enough_is_taken():
    assert pack([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    assert pack([10, 10], 10) == [[0], [1]] and pack([], 10) == []
