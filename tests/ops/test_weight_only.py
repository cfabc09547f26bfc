"""Weights in int8 and int4: how far rounding may go, what lies where in a byte, and what is refused."""

import pytest
import torch

from modelwright.ops.stored import stored_linear
from modelwright.ops.weight_only import Int4Weight, dequantise, quantise_int4, quantise_int8


def test_int8_is_off_by_half_a_scale_at_most():
    torch.manual_seed(0)
    weight = torch.randn(2, 5, 48) * torch.tensor([1e-3, 1e3])[:, None, None]
    stored = quantise_int8(weight)
    assert stored.steps.dtype == torch.int8 and stored.scales.shape == (2, 5)
    assert ((dequantise(stored) - weight).abs() <= stored.scales[..., None] * 0.5001).all()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_is_off_by_half_a_step_at_most(group):
    torch.manual_seed(0)
    weight = torch.randn(2, 5, 256) + 0.3
    for offset in (False, True):
        stored = quantise_int4(weight, group, offset)
        assert stored.steps.shape == (2, 5, 128) and stored.group == group
        assert (stored.offsets is not None) == offset
        steps = stored.scales.float().abs().repeat_interleave(group, dim=-1)
        error = (dequantise(stored) - weight).abs() / steps
        # Beyond the half: 16 steps reach 7 of one sign and 8 of the other, and bf16 scales and offsets have 8 bits.
        assert error.max() <= (1.0 if not offset else 0.5) + 8 * 2**-8 + 0.05
        assert error.mean() < 0.3


def test_offsets_help_where_a_group_is_one_sided():
    torch.manual_seed(0)
    weight = torch.rand(4, 64) + 1
    errors = [(dequantise(quantise_int4(weight, 32, offset)) - weight).abs().mean() for offset in (False, True)]
    assert errors[1] < errors[0] / 2


def test_with_an_offset_the_steps_run_from_the_least_to_the_greatest():
    """A group by hand: -1 to 2 in 15 steps of 0.2, whose middle, step 8, is at -1 + 8 * 0.2."""
    weight = torch.linspace(-1, 2, 16).repeat_interleave(2).repeat(2)[None]  # each of 16 values twice, in two groups
    stored = quantise_int4(weight)
    scale = torch.tensor(0.2).bfloat16()
    offset = (-1 + 8 * scale.float()).bfloat16()
    assert stored.scales.tolist() == [[scale.item()] * 2]
    assert stored.offsets is not None and stored.offsets.tolist() == [[offset.item()] * 2]
    steps = torch.arange(16, dtype=torch.uint8).repeat_interleave(2)
    assert torch.equal(stored.steps, (steps | steps << 4)[None])  # both groups are the same
    assert torch.equal(dequantise(stored), ((steps.float() - 8) * scale.float() + offset.float()).repeat(2)[None])


def test_two_steps_lie_in_a_byte_32_channels_apart():
    packed = torch.zeros(1, 32, dtype=torch.uint8)
    packed[0, 3] = 0xA5  # channel 3 has step 5, channel 35 step 10
    weight = dequantise(Int4Weight(packed, torch.tensor([[1.0, 2.0]]).bfloat16()))
    assert weight[0, 3] == 5 - 8 and weight[0, 35] == 2 * (10 - 8)
    assert weight[0, 0] == -8 and weight[0, 32] == -16


def test_zeros_stay_zeros():
    zeros = torch.zeros(2, 64)
    for stored in (quantise_int8(zeros), quantise_int4(zeros), quantise_int4(zeros, offset=False)):
        assert torch.equal(dequantise(stored), zeros)


def test_the_layer_by_hand():
    weight = torch.tensor([[127.0, -64.0], [1.27, 0.0]])
    bias = torch.tensor([1.0, -1.0]).bfloat16()
    with torch.no_grad():
        out = stored_linear(torch.tensor([[1.0, 0.5]]).bfloat16(), quantise_int8(weight), bias)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), torch.tensor([[127.0 - 32 + 1, 1.27 - 1]]), rtol=4e-3, atol=0)


@pytest.mark.parametrize(("group", "inputs"), [(16, 64), (32, 96), (128, 192)])
def test_groups_that_do_not_fit_are_refused(group, inputs):
    with pytest.raises(ValueError, match=rf"must be of 32, 64, 128 .* got groups of {group} and {inputs} inputs"):
        quantise_int4(torch.zeros(2, inputs), group)
