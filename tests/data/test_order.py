"""The order of rows, and the mixture of sources."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.data.mixture import Draw, Draws, Mixture
from modelwright.data.order import Permutation


@settings(max_examples=40)
@given(st.integers(1, 150), st.integers(0, 99), st.integers(0, 9))
def test_every_number_comes_once(n, seed, epoch):
    order = Permutation(n, seed, epoch)
    assert sorted(order[place] for place in range(n)) == list(range(n))


def test_a_place_far_out_needs_no_list():
    order = Permutation(10**12, 1, 2)
    places = [order[place] for place in range(10**12 - 1000, 10**12)]
    assert len(set(places)) == 1000 and all(0 <= number < 10**12 for number in places)
    with pytest.raises(IndexError, match="at least 0 and below 1000000000000, got 1000000000000"):
        order[10**12]


def test_other_keys_give_other_orders():
    orders = {tuple(Permutation(50, seed, epoch)[place] for place in range(50)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    assert [Permutation(50, 0, 0)[place] for place in range(50)] != list(range(50))


def test_every_number_is_as_likely_at_every_place():
    """Chi-squared of the 9 cells over 3000 keys: the mean is 4 for an order drawn by chance, 0.1 % exceed 18.5."""
    found = Counter((place, Permutation(3, seed)[place]) for seed in range(3000) for place in range(3))
    assert sum((found[a, b] - 1000) ** 2 / 1000 for a in range(3) for b in range(3)) < 18.5


def test_neighbours_are_scattered():
    """The mean distance of neighbours is a third of all numbers, as by chance; a rotation's would be 1."""
    order = Permutation(3000, 7)
    distances = [abs(order[place] - order[place + 1]) for place in range(2999)]
    assert 950 < sum(distances) / len(distances) < 1050


@settings(max_examples=30)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=7))
def test_weights_hold_at_any_prefix(weights):
    mixture, exact = Mixture(weights), [Fraction(str(weight)) for weight in weights]
    for turn in range(1, 80):
        mixture.choose()
        for count, weight in zip(mixture.counts, exact, strict=True):
            assert abs(count - turn * weight / sum(exact)) < 1


def test_counts_are_the_whole_state_of_a_mixture():
    whole = Draws([5, 3, 11], [0.5, 0.2, 0.3], seed=3, shuffle=True)
    rows = [whole.draw() for _ in range(60)]
    for done in (0, 1, 17, 59):
        before = Draws([5, 3, 11], [0.5, 0.2, 0.3], seed=3, shuffle=True)
        for _ in range(done):
            before.draw()
        after = Draws([5, 3, 11], [0.5, 0.2, 0.3], seed=3, shuffle=True, counts=before.counts)
        assert [after.draw() for _ in range(60 - done)] == rows[done:]


def test_each_source_wraps_by_epochs_of_its_own():
    draws = Draws([4, 10], [1.0, 1.0], seed=0, shuffle=True)
    rows = [draws.draw() for _ in range(80)]
    short, long = ([draw.row for draw in rows if draw.source == source] for source in (0, 1))
    assert [sorted(short[i : i + 4]) for i in range(0, 40, 4)] == [list(range(4))] * 10
    assert [sorted(long[i : i + 10]) for i in range(0, 40, 10)] == [list(range(10))] * 4
    assert len({tuple(short[i : i + 4]) for i in range(0, 40, 4)}) > 4  # in another order each time


def test_rows_may_come_as_they_stand():
    draws = Draws([3], [1.0], seed=0, shuffle=False)
    assert [draws.draw() for _ in range(4)] == [Draw(0, 0), Draw(0, 1), Draw(0, 2), Draw(0, 0)]
