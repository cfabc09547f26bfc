"""GPTQ against the paper's equations written out in fp64, and against rounding to nearest by a layer's products."""

import pytest
import torch

from modelwright.ops.gptq import DAMPING, gptq
from modelwright.ops.weight_only import Int4Weight, dequantise, quantise_int4


def drawn(seed, out=24, inputs=128, rows=400):
    """A weight, and rows of correlated inputs of very different sizes."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inputs, inputs, generator=random) / inputs**0.5 + torch.eye(inputs)
    sizes = torch.logspace(-1, 1, inputs)[torch.randperm(inputs, generator=random)]
    x = torch.randn(rows, inputs, generator=random) @ mixed * sizes
    return torch.randn(out, inputs, generator=random) / inputs**0.5, x


def by_the_paper(weight, hessian, stored):
    """Optimal brain quantization, equations 2 and 3, one column after the other; the inverse is updated each time."""
    wide, group = hessian.double(), weight.shape[1] // stored.scales.shape[1]
    never = wide.diagonal() == 0
    wide = wide + torch.diag(never.double())
    wide = wide + DAMPING * wide.diagonal().mean() * torch.eye(len(wide), dtype=torch.float64)
    inverse, left, values = torch.linalg.inv(wide), weight.double().clone(), torch.zeros_like(weight).double()
    for column in hessian.diagonal().argsort(descending=True, stable=True).tolist():
        scale = stored.scales[:, column // group].double()
        offset = 0 if stored.offsets is None else stored.offsets[:, column // group].double()
        steps = ((left[:, column] - offset) / torch.where(scale == 0, 1, scale)).round().clamp(-8, 7)
        values[:, column] = steps * scale + offset
        errors = (left[:, column] - values[:, column]) / inverse[column, column]
        left = left - errors[:, None] * inverse[column]
        inverse = inverse - inverse[:, column, None] * inverse[column] / inverse[column, column]
        inverse[column, column] = 1  # of a column that is done nothing is asked any more
    return values


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize(("group", "inputs"), [(32, 128), (64, 192), (128, 256)])
def test_it_rounds_as_the_paper_says(group, inputs, offset):
    weight, x = drawn(inputs, inputs=inputs)
    nearest = quantise_int4(weight, group, offset)
    ours = gptq(weight, x.T @ x, group, offset)
    assert torch.equal(ours.scales, nearest.scales)
    assert ours.offsets is None if not offset else torch.equal(ours.offsets, nearest.offsets)
    wanted = by_the_paper(weight, x.T @ x, ours)
    torch.testing.assert_close(dequantise(ours).double(), wanted, rtol=0, atol=1e-6)
    assert not torch.equal(ours.steps, nearest.steps)


@pytest.mark.parametrize("seed", range(4))
def test_products_are_nearer_than_to_nearest(seed):
    weight, x = drawn(seed)
    own, nearest = (
        (x @ (dequantise(stored) - weight).T).norm()
        for stored in (gptq(weight, x.T @ x, 32), quantise_int4(weight, 32))
    )
    assert own < 0.8 * nearest


def test_inputs_that_never_come_are_rounded_to_nearest():
    weight, x = drawn(0)
    x[:, 5:40] = 0
    ours, nearest = (dequantise(stored) for stored in (gptq(weight, x.T @ x, 32), quantise_int4(weight, 32)))
    assert torch.equal(ours[:, 5:40], nearest[:, 5:40])


def test_inputs_that_are_not_correlated_leave_nothing_to_make_up_for():
    weight, _ = drawn(1)
    ours, nearest = gptq(weight, torch.diag(torch.rand(128) + 0.1), 32), quantise_int4(weight, 32)
    assert isinstance(ours, Int4Weight) and torch.equal(ours.steps, nearest.steps)


def test_it_is_the_same_each_time_and_leaves_its_arguments_alone():
    weight, x = drawn(2)
    hessian = x.T @ x
    kept = weight.clone(), hessian.clone()
    first, second = gptq(weight, hessian, 32), gptq(weight, hessian, 32)
    assert torch.equal(first.steps, second.steps)
    assert torch.equal(weight, kept[0]) and torch.equal(hessian, kept[1])


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="got groups of 128 and 192 inputs"):
        gptq(torch.zeros(2, 192), torch.eye(192), 128)
