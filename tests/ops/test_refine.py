"""What is refined after GPTQ: against sums in fp64, and against every other step that an input could take."""

import pytest
import torch

from modelwright.ops.gptq import DAMPING, gptq
from modelwright.ops.refine import _fitted, _stepped, refine
from modelwright.ops.weight_only import Int4Weight, dequantise, unpack_steps
from tests.ops.test_gptq import drawn


def damped(x):
    wide = x.double().T @ x.double()
    wide /= wide.diagonal().mean()
    return wide + DAMPING * torch.eye(len(wide), dtype=torch.float64)


def errors(weight, hessian, stored):
    """Of each row, in fp64."""
    rest = weight.double() - dequantise(stored).double()
    return torch.einsum("ri,ij,rj->r", rest, hessian, rest)


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize(("group", "inputs"), [(32, 128), (64, 192), (128, 256)])
def test_no_row_is_worse_and_most_are_better(group, inputs, offset):
    weight, x = drawn(inputs, inputs=inputs)
    given = gptq(weight, x.T @ x, group, offset)
    found = refine(weight, x.T @ x, given)
    before, after = (errors(weight, damped(x), each) for each in (given, found))
    assert bool((after <= before * (1 + 1e-5)).all()) and float(after.sum()) < 0.97 * float(before.sum())
    assert found.scales.dtype == torch.bfloat16 and found.group == group
    assert (found.offsets is None) is not offset


def test_what_comes_of_other_inputs_is_nearer_too():
    weight, x = drawn(3, rows=2000)
    given = gptq(weight, x[:1000].T @ x[:1000], 32)
    found = refine(weight, x[:1000].T @ x[:1000], given)
    ours, before = ((x[1000:] @ (dequantise(each) - weight).T).norm() for each in (found, given))
    assert ours < 0.97 * before


@pytest.mark.parametrize("offset", [True, False])
def test_no_other_scales_of_the_same_steps_do_better(offset):
    """The least squares of fp64 on the rows of inputs themselves; bf16 scales are as near as they can be."""
    weight, x = drawn(1, out=3)
    given = gptq(weight, x.T @ x, 32, offset)
    found = _fitted(weight, damped(x).float(), given)
    assert torch.equal(found.steps, given.steps)
    root = torch.linalg.cholesky(damped(x)).T
    steps = unpack_steps(given.steps).double() - 8
    for row in range(len(weight)):
        columns = [torch.where(torch.arange(128) // 32 == g, steps[row], 0) for g in range(4)]
        columns += [(torch.arange(128) // 32 == g).double() for g in range(4)] if offset else []
        basis = root @ torch.stack(columns, dim=1)
        best = torch.linalg.lstsq(basis, root @ weight[row].double()).solution
        least = (root @ weight[row].double() - basis @ best).square().sum()
        assert float(errors(weight, damped(x), found)[row]) < 1.01 * float(least)


def test_each_step_is_the_best_that_its_input_can_take():
    """The last input that is gone through: each of its 16 steps is tried."""
    weight, x = drawn(2, out=5)
    given = gptq(weight, x.T @ x, 32)
    found = _stepped(weight, damped(x).float(), given)
    last = int(damped(x).float().diagonal().argsort(descending=True, stable=True)[-1])
    tried = []
    for step in range(16):
        values = dequantise(found).double()
        offset, scale = found.offsets[:, last // 32].double(), found.scales[:, last // 32].double()
        values[:, last] = (step - 8) * scale + offset
        rest = weight.double() - values
        tried.append(torch.einsum("ri,ij,rj->r", rest, damped(x), rest))
    assert torch.equal(torch.stack(tried).argmin(dim=0), unpack_steps(found.steps)[:, last].long())
    before, after = (errors(weight, damped(x), each) for each in (given, found))
    assert bool((after <= before * (1 + 1e-5)).all()) and float(after.sum()) < float(before.sum())


def test_weights_that_are_steps_already_stay():
    weight, x = drawn(4)
    exact = gptq(weight, x.T @ x, 32)
    again = refine(dequantise(exact), x.T @ x, exact)
    assert all(torch.equal(getattr(again, part), getattr(exact, part)) for part in ("steps", "scales", "offsets"))


def test_rows_of_zeros_and_inputs_that_never_come_are_finite():
    weight, x = drawn(5)
    weight[3], x[:, 5:40] = 0, 0
    for hessian in (x.T @ x, torch.zeros(128, 128)):
        found = refine(weight, hessian, gptq(weight, hessian, 32))
        assert isinstance(found, Int4Weight) and bool(dequantise(found).isfinite().all())
        assert bool((dequantise(found)[3] == 0).all())
