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


def test_the_type_it_computes_in_is_its_own():
    x = torch.tensor([[300.0, 400.0]])
    assert torch.equal(RMSNorm(2, compute=torch.bfloat16)(x), RMSNorm(2)(x.bfloat16()).float())
    assert not RMSNorm(2, compute=torch.float16)(x).any()  # the squares overflow, and their root has no inverse


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_orders_differ_by_one_rounding(dtype):
    torch.manual_seed(0)
    apart, fused = RMSNorm(64), RMSNorm(64, fused=True)
    torch.nn.init.normal_(apart.weight, 1.0, 0.1)
    fused.load_state_dict(apart.state_dict())
    x = torch.randn(8, 64)
    torch.testing.assert_close(fused(x), apart(x))
    wide = x.to(dtype).float()
    normed = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    torch.testing.assert_close(fused(x.to(dtype)), (normed * fused.weight).to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(apart(x.to(dtype)), (normed.to(dtype) * apart.weight).to(dtype), rtol=0, atol=0)
    assert not torch.equal(fused(x.to(dtype)), apart(x.to(dtype)))
