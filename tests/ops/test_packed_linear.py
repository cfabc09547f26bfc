"""Packed products equal plain ones, for any rows and types, and are plain where nothing can be packed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.ops.packed_linear import packed_product, plain_product


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 20),
    widths=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    biased=st.booleans(),
    added=st.booleans(),
)
def test_both_are_the_affine_map(rows, widths, biased, added):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, widths[0], generator=generator), torch.randn(*widths, generator=generator)
    bias = torch.randn(widths[1], generator=generator) if biased else None
    residual = torch.randn(rows, widths[1], generator=generator) if added else None
    wanted = x @ weight + (bias if bias is not None else 0) + (residual if residual is not None else 0)
    with torch.no_grad():
        for make in (plain_product, packed_product):
            torch.testing.assert_close(make(weight, bias)(x, residual), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_other_types(dtype):
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((3, 16), (16, 8), (8,)))
    found, wanted = (make(weight, bias)(x, x[:, :8]) for make in (packed_product, plain_product))
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, atol=0.1, rtol=0.02)


def test_a_build_that_cannot_pack_multiplies_as_it_lies(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such kernel here")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse, raising=False)
    weight = torch.randn(4, 6)
    product = packed_product(weight, None)
    weight += 1  # the weight itself is read, not a copy
    x = torch.randn(2, 4)
    assert torch.equal(product(x, None), x @ weight)


def test_a_copy_is_packed():
    weight, x = torch.randn(4, 6), torch.randn(2, 4)
    product, before = packed_product(weight, None), x @ weight
    weight.zero_()
    found = product(x, None)
    assert torch.equal(found, torch.zeros(2, 6)) or torch.allclose(found, before, atol=1e-6)
