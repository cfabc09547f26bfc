"""The norm's formula, its precision in every type, and its type under autocast."""

import pytest
import torch

from modelwright.layers import RMSNorm


def test_the_formula_by_hand():
    norm = RMSNorm(2, eps=0.5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0]))
    rms = ((9 + 16) / 2 + 0.5) ** 0.5
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), torch.tensor([[3 / rms, 40 / rms]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_mean_square_is_taken_in_fp32(dtype):
    x = torch.tensor([[300.0, 400.0]], dtype=dtype)  # squares overflow fp16
    out = RMSNorm(2).to(dtype)(x)
    assert out.dtype == dtype
    wide = RMSNorm(2)(x.float())
    assert torch.equal(out, wide.to(dtype))


def test_the_input_type_is_kept_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert RMSNorm(4)(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
        assert RMSNorm(4)(torch.ones(1, 4)).dtype == torch.float32
