"""Both feed-forward layers against their formula, where dropout falls, and their official names."""

import pytest
import torch
import torch.nn.functional as F

from modelwright.layers import GatedMLP, PlainMLP


@pytest.mark.parametrize("slices", [1, 2])
def test_formulas(slices):
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    gated = GatedMLP(4, 6, F.silu, slices=slices)
    gate, up, down = (gated.get_parameter(f"{name}_proj.weight") for name in ("gate", "up", "down"))
    torch.testing.assert_close(gated(x), (F.silu(x @ gate.T) * (x @ up.T)) @ down.T, rtol=1e-5, atol=1e-6)
    plain = PlainMLP(4, 6, F.gelu, bias=True, slices=slices)
    fc1, fc2 = plain.fc1, plain.fc2
    expected = F.gelu(x @ fc1.weight.T + fc1.bias) @ fc2.weight.T + fc2.bias
    torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-6)


def test_names():
    assert [*GatedMLP(2, 2, F.silu).state_dict()] == ["gate_proj.weight", "up_proj.weight", "down_proj.weight"]
    assert [*PlainMLP(2, 2, F.silu).state_dict()] == ["fc1.weight", "fc2.weight"]
    assert [*PlainMLP(2, 2, F.silu, bias=True).state_dict()] == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]


@pytest.mark.parametrize("kind", [GatedMLP, PlainMLP])
def test_dropout_falls_after_the_activation_and_after_the_output_in_training_only(kind):
    torch.manual_seed(0)
    mlp = kind(1, 1, torch.ones_like, dropout=0.5)
    with torch.no_grad():
        for weight in mlp.parameters():
            weight.fill_(1.0)
    x = torch.ones(4000, 1)
    out = mlp(x)
    assert set(out.flatten().tolist()) == {0.0, 4.0}  # kept twice, each time doubled
    assert (out > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(mlp.eval()(x), torch.ones(4000, 1))


def test_gate_and_up_may_be_one_matrix_of_alternating_rows():
    torch.manual_seed(0)
    apart, fused = GatedMLP(8, 6, F.silu), GatedMLP(8, 6, F.silu, fused=True)
    slots = fused.slots()
    with torch.no_grad():
        for name, slot in slots.items():
            fused.get_parameter(slot.parameter)[slot.index] = apart.get_parameter(name)
        fused.down_proj.weight.copy_(apart.down_proj.weight)
    assert slots["up_proj.weight"].index == (slice(1, 12, 2),)
    assert apart.slots() == {}
    x = torch.randn(3, 8)
    torch.testing.assert_close(fused(x), apart(x))
