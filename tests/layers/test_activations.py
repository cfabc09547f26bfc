"""Activations by name: those of transformers, number by number, with their parameters under the same names."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from modelwright.configs.activations import ACTIVATION_NAMES
from modelwright.layers.activations import ACTIVATIONS, activation


def test_there_is_one_of_each_name_that_a_config_may_state():
    assert tuple(ACTIVATIONS) == ACTIVATION_NAMES == tuple(ACT2FN)


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_gradients_and_parameters_are_transformers(name, dtype):
    ours, theirs = activation(name).to(dtype), ACT2FN[name].to(dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    points = torch.linspace(-12, 12, 2001).to(dtype)
    x, y = points.clone().requires_grad_(), points.clone().requires_grad_()
    out, wanted = ours(x), theirs(y)
    torch.testing.assert_close(out, wanted, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-6)
    out.float().sum().backward()
    wanted.float().sum().backward()
    assert x.grad is not None and y.grad is not None
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5)


def test_silu_is_torchs_own_and_each_call_makes_a_module():
    assert type(activation("silu")) is type(activation("swish")) is nn.SiLU
    assert activation("prelu") is not activation("prelu")
    with pytest.raises(KeyError):
        activation("gelo")
