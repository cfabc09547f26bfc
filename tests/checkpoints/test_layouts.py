"""Fused layouts: the order of their rows, and that every part comes out of what it went into, bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelwright.checkpoints.layouts import Consecutive, Interleaved, QkvGroups, Stacked, StackedGateUp


def rows(*names: str) -> torch.Tensor:
    """A column of numbers that read as ``names``: q3 is 103, k3 203, v3 303."""
    return torch.tensor([[100 * ("qkv".index(name[0]) + 1) + int(name[1:])] for name in names])


def test_w_qkv_has_for_each_key_head_its_queries_then_its_key_then_its_value():
    parts = [rows(*(f"{x}{i}" for i in range(n))) for x, n in (("q", 8), ("k", 4), ("v", 4))]
    wanted = rows(*["q0", "q1", "q2", "q3", "k0", "k1", "v0", "v1", "q4", "q5", "q6", "q7", "k2", "k3", "v2", "v3"])
    assert torch.equal(QkvGroups(groups=2, queries=2).join(parts), wanted)  # heads 2 wide
    biases = [part.flatten() for part in parts]
    assert torch.equal(QkvGroups(2, 2).join(biases), wanted.flatten())


def test_w_gate_hidden_takes_turns():
    joined = Interleaved().join([torch.tensor([1, 2, 3]), torch.tensor([10, 20, 30])])
    assert joined.tolist() == [1, 10, 2, 20, 3, 30]


def test_the_grouped_product_has_gate_columns_before_up_columns():
    gate, up = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6], [7, 8]])
    assert StackedGateUp().join([gate, up]).tolist() == [[[1, 3, 5, 7], [2, 4, 6, 8]]]


def test_transposed_experts_are_in_by_out():
    assert Stacked(transposed=True).join([torch.zeros(3, 2)] * 4).shape == (4, 2, 3)
    assert Stacked().join([torch.zeros(3, 2)] * 4).shape == (4, 3, 2)


@given(
    groups=st.integers(1, 4),
    queries=st.integers(1, 4),
    head_dim=st.integers(1, 5),
    columns=st.sampled_from([(), (3,)]),
)
def test_query_key_and_value_come_back(groups, queries, head_dim, columns):
    sizes = [groups * queries * head_dim, groups * head_dim, groups * head_dim]
    parts = [torch.randn(size, *columns) for size in sizes]
    for layout in (QkvGroups(groups, queries), Consecutive(tuple(sizes))):
        joined = layout.join(parts)
        assert joined.shape == (sum(sizes), *columns)
        assert all(torch.equal(layout.part(joined, i), part) for i, part in enumerate(parts))


@given(experts=st.integers(1, 4), out=st.integers(1, 5), into=st.integers(1, 5))
def test_experts_come_back(experts, out, into):
    parts = [torch.randn(out, into) for _ in range(2 * experts)]
    for layout in (Stacked(), Stacked(transposed=True), StackedGateUp()):
        joined = layout.join(parts)
        assert all(torch.equal(layout.part(joined, i), part) for i, part in enumerate(parts))


@pytest.mark.parametrize("columns", [(), (4,)])
def test_gate_and_up_come_back(columns):
    parts = [torch.randn(6, *columns), torch.randn(6, *columns)]
    joined = Interleaved().join(parts)
    assert all(torch.equal(Interleaved().part(joined, i), part) for i, part in enumerate(parts))
