"""Moments in 8 bits: what they are of fp32's, how far a step can go wrong by them, and runs that keep them."""

import pytest
import torch
from torch import nn

from modelwright.configs.run import RunConfig
from modelwright.errors import ConfigError
from modelwright.families.read import config_of
from modelwright.planner.training import plan_run
from modelwright.training import state
from modelwright.training.eight_bit import BLOCK, EightBitAdam, narrow, widened
from tests.training.learners import MODELS, learner_of, rows_of, run_config, step_batch
from tests.training.test_learner import numbers, round_trip, steps
from tests.training.test_trainer import CONFIG, losses, trainer_of

close = torch.testing.assert_close
FIRST, SECOND = 0.9, 0.95
HALF = {True: 0.9 / 2**6 / 2 + 2**-9, False: 0.9 / 2**7 / 2 + 2**-9}
"""Of a block's largest number, the most that one rounding takes: half of the widest gap between two shares (64 pieces
of the uppermost power of ten, 128 without a sign), and what bfloat16 rounds before."""


def stepped(kind, weight, gradients, **settings):
    """The optimizer after these steps, and its weight."""
    weight = nn.Parameter(weight.clone())
    optimizer = kind([weight], lr=1e-2, betas=(FIRST, SECOND), weight_decay=0.1, **settings)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return optimizer.state[weight], weight.detach()


def drawn(*shape, steps=12):
    """A weight, and gradients of rows that differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.logspace(0, -6, shape[0])[:, None]
    return torch.randn(shape, generator=generator), [
        torch.randn(shape, generator=generator) * rows for _ in range(steps)
    ]


def test_moments_stay_within_what_rounding_can_take():
    """A step keeps ``b1`` of a moment's error, and ``sqrt(b2)`` of a root's, and rounds once more."""
    weight, gradients = drawn(16, 48)
    most = {name: torch.zeros(16 * 48 // BLOCK) for name in ("exp_avg", "root_avg_sq")}
    for t in range(1, len(gradients) + 1):
        kept, _ = stepped(EightBitAdam, weight, gradients[:t])
        exact, _ = stepped(torch.optim.AdamW, weight, gradients[:t])
        for name, wanted in (("exp_avg", exact["exp_avg"]), ("root_avg_sq", exact["exp_avg_sq"].sqrt())):
            signed, scales = name == "exp_avg", kept[f"{name}_scale"]
            most[name] = most[name] * (FIRST if signed else SECOND**0.5) + HALF[signed] * scales
            found = widened(kept[name].view(-1), scales, signed)
            errors = (found - wanted.view(-1)).abs().view(-1, BLOCK).amax(dim=1)
            assert (errors <= most[name] * (1 + 1e-5)).all(), (t, name)
            assert (errors > 0).all()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_what_is_no_matrix_is_stepped_as_in_fp32_and_a_first_step_always(kind):
    decoupled = kind is torch.optim.AdamW
    weight, gradients = drawn(300, 1)
    vectors = weight[:, 0], [gradient[:, 0] for gradient in gradients]
    close(stepped(EightBitAdam, *vectors, decoupled=decoupled)[1], stepped(kind, *vectors)[1], atol=1e-7, rtol=1e-6)
    first = weight, gradients[:1]
    close(stepped(EightBitAdam, *first, decoupled=decoupled)[1], stepped(kind, *first)[1], atol=1e-7, rtol=1e-6)


def test_a_weight_moves_no_further_where_gradients_are_small_beside_others():
    """Also after one whose moment is what is left of two that cancel: no root above 0 is rounded to 0."""
    gradients = [torch.full((2, BLOCK), small) for small in (1e-4, 1e-4, 0.0)]
    for gradient, large in zip(gradients, (1e3, -9e2, 0.0), strict=True):
        gradient[:, 0] = large
    _, moved = stepped(EightBitAdam, torch.zeros(2, BLOCK), gradients)
    assert moved.abs().max() <= 3 * 1e-2


@pytest.mark.parametrize("signed", [True, False])
def test_every_code_is_the_nearest_of_its_own_number(signed):
    codes = torch.arange(256, dtype=torch.uint8)
    scales, again, kept = torch.tensor([3.0]), torch.empty(1), torch.empty_like(codes)
    found = widened(codes, scales, signed)
    narrow(found, kept, again, signed)
    assert (again, found.max()) == (3.0, 3.0) and (found == 0).sum() == 1
    assert (found.diff() > 0).all()
    close(widened(kept, again, signed), found, atol=0, rtol=5e-3)


def test_blocks_that_are_not_full_and_chunks_are_one_matrix(monkeypatch):
    weight, gradients = drawn(7, 131, steps=3)
    whole = stepped(EightBitAdam, weight, gradients)
    monkeypatch.setattr("modelwright.training.eight_bit.AT_ONCE", BLOCK)
    parts = stepped(EightBitAdam, weight, gradients)
    assert torch.equal(parts[1], whole[1])
    assert all(torch.equal(parts[0][name], kept) for name, kept in whole[0].items())
    assert whole[0]["exp_avg"].dtype == torch.uint8 and len(whole[0]["exp_avg_scale"]) == 4


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", MODELS)
def test_every_family_learns_with_them_and_goes_on_bit_for_bit(name):
    parts = {"optimizer": {"lr": 1e-2, "state": "int8"}}
    whole = learner_of(MODELS[name](), **parts)
    batches = [step_batch(rows_of(whole.model, 4, seed % 2), 2) for seed in range(6)]
    expected = numbers(steps(whole, batches))
    first, second = learner_of(MODELS[name](), **parts), learner_of(MODELS[name](seed=7), **parts)
    found = numbers(steps(first, batches[:3]))
    round_trip(first, second)
    assert found + numbers(steps(second, batches[3:], 4)) == expected
    exact = learner_of(MODELS[name](), optimizer={"lr": 1e-2})
    close(whole_loss(expected), whole_loss(numbers(steps(exact, batches))), atol=0, rtol=0.02)
    kept = {key: tensor for key, tensor in state.tensors(whole).items() if key.endswith(".exp_avg")}
    for key, tensor in kept.items():
        assert (tensor.dtype == torch.uint8) == (tensor.dim() > 1), key


def whole_loss(found):
    return sum(each[0] for each in found)


@pytest.mark.slow
def test_a_run_with_them_is_saved_and_goes_on(tmp_path):
    parts = {"optimizer": {"lr": 1e-2, "state": "int8"}, "checkpoint": {"every": 2, "on_end": "none"}}
    whole, stopped = trainer_of(tmp_path / "whole", **parts), trainer_of(tmp_path / "cut", limits={"stop": 4}, **parts)
    whole.fit()
    stopped.fit()
    rest = trainer_of(tmp_path / "cut", **parts)
    rest.fit()
    assert sorted(rest.report.results) == [5, 6] and losses(stopped) | losses(rest) == losses(whole)
    for key, tensor in state.tensors(whole.learner).items():
        assert torch.equal(state.tensors(rest.learner)[key], tensor), key


def test_a_plan_counts_them():
    sizes = []
    for kept in ("float32", "int8"):
        run = run_config(model={"config": CONFIG}, optimizer={"state": kept}, data={"seq_length": 16})
        model = config_of(CONFIG, "config")
        sizes.append(plan_run(model, run).memory.optimizer)
    exact = learner_of(MODELS["steered"]())
    numbers_of = sum(each.weight.numel() for each in exact.steered)
    assert sizes[0] == pytest.approx(8 * numbers_of, rel=0.01)
    assert sizes[1] == pytest.approx(sizes[0] * (2 + 8 / BLOCK) / 8, rel=0.01)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adafactor", "lion", "muon"])
def test_others_keep_no_such_moments(name):
    with pytest.raises(ConfigError, match=f'state "int8" needs the optimizer adam or adamw, got "{name}"'):
        RunConfig.of({"model": {"config": {}}, "output": "x", "steps": 1, "optimizer": {"name": name, "state": "int8"}})
