"""Sliced linears: equal to the plain layer up to rounding, and really computed in slices."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modelwright.layers import Linear, column_linear, row_linear


@pytest.mark.parametrize("make", [column_linear, row_linear])
@pytest.mark.parametrize("bias", [False, True])
def test_slices_give_the_plain_result_from_the_plain_weights(make, bias, monkeypatch):
    torch.manual_seed(0)
    plain, sliced = make(12, 8, bias), make(12, 8, bias, slices=4)
    assert type(plain) is Linear and isinstance(plain, nn.Linear)
    sliced.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 12)
    shapes, product = [], F.linear
    monkeypatch.setattr(F, "linear", lambda x, w, b=None: shapes.append((x.shape[-1], *w.shape)) or product(x, w, b))
    out = sliced(x)
    assert shapes == [(12, 2, 12) if make is column_linear else (3, 8, 3)] * 4
    torch.testing.assert_close(out, plain(x), rtol=1e-5, atol=1e-6)


def test_row_slices_are_added_in_order_in_the_input_type():
    layer = row_linear(4, 1, slices=4).bfloat16()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[256.0, 1.0, 1.0, 1.0]]))
    x = torch.ones(1, 4, dtype=torch.bfloat16)
    assert layer(x).item() == 256  # 256 + 1 rounds back to 256 each time
    assert F.linear(x, layer.weight).item() == 260  # 259 in one sum, rounded once


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("make", [column_linear, row_linear])
def test_the_product_runs_in_a_type_of_its_own(make, slices):
    layer, x = make(8, 6, bias=True, slices=slices, compute=torch.bfloat16), torch.randn(3, 8)
    out = layer(x)
    assert (out.dtype, layer.weight.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out, layer.to(torch.bfloat16)(x.bfloat16()), atol=2e-2, rtol=0)
    assert type(make(8, 6)) is Linear
