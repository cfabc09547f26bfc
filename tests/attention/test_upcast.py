"""UpcastAttention: fp32 inside, the values' type outside, and no latent attention."""

import pytest
import torch
from torch import nn

from modelwright.attention import DenseAttention
from modelwright.attention.upcast import UpcastAttention


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_is_the_upcast_dense_pass(dtype):
    q, k, v = (torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(i)).to(dtype) * 60 for i in range(3))
    found = UpcastAttention(DenseAttention()).attend(0, q, k, v, scale=0.5)
    wanted = DenseAttention(upcast=True).attend(0, q, k, v, scale=0.5)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, atol=0, rtol=2 * torch.finfo(dtype).eps)


def test_scores_beyond_half_precision_stay_numbers():
    q = torch.full((1, 1, 2, 4), 300.0, dtype=torch.float16)
    found = UpcastAttention(DenseAttention(fused=False)).attend(0, q, q, q, scale=1.0)
    assert torch.equal(found, q)
    assert not torch.isfinite(DenseAttention(fused=False).attend(0, q, q, q, scale=1.0)).all()


def test_latent_attention_is_refused():
    x = torch.zeros(1, 1, 1, 2)
    with pytest.raises(ValueError, match="latent attention cannot be upcast"):
        UpcastAttention(DenseAttention()).attend_latent(0, x, x, x[0], x[0], nn.Identity(), kv_b_weight=None, scale=1.0)
