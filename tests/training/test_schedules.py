"""Learning rates against formulas written out by hand, and against transformers' and torch's own schedulers."""

import math

import pytest
import torch
import transformers

from modelwright.configs.run import SchedulePart
from modelwright.training.schedules import rate_at

LR, TOTAL = 3e-4, 40


def rates(total=TOTAL, **part):
    schedule = SchedulePart(**part)
    return [rate_at(schedule, LR, total, step) for step in range(1, total + 1)]


def test_ours_count_from_one():
    """The last step of warming up has the whole rate, the last of the run the rate that it ends at."""
    found = rates(name="cosine", warmup=0.1, end=0.1)
    assert found[:4] == pytest.approx([LR / 4, LR / 2, 3 * LR / 4, LR])
    assert found[-1] == pytest.approx(0.1 * LR) and found == found[:4] + sorted(found[4:], reverse=True)
    assert found[21] == pytest.approx(LR * (0.1 + 0.9 * 0.5))  # halfway down
    assert rates(name="cosine", warmup=4) == rates(name="cosine", warmup=0.1)


@pytest.mark.parametrize(
    ("part", "by_hand"),
    [
        ({"name": "constant", "warmup": 5}, lambda t: min(t / 5, 1)),
        ({"name": "linear", "end": 0.2}, lambda t: 1 - 0.8 * t / 40),
        ({"name": "linear", "warmup": 8}, lambda t: t / 8 if t < 8 else 1 - (t - 8) / 32),
        ({"name": "polynomial", "power": 2.0, "end": 0.1}, lambda t: 0.1 + 0.9 * (1 - t / 40) ** 2),
        ({"name": "wsd", "decay": 10, "end": 0.5}, lambda t: 1 if t < 30 else 1 - 0.5 * (t - 30) / 10),
        ({"name": "wsd"}, lambda t: 1 if t < 32 else 1 - (t - 32) / 8),
        ({"name": "wsd", "decay": 0.25, "warmup": 2}, lambda t: t / 2 if t < 2 else min(1, (40 - t) / 10)),
        (
            {"name": "restarts", "cycles": 2},
            lambda t: 0 if t == 40 else 0.5 * (1 + math.cos(math.pi * ((2 * t / 40) % 1))),
        ),
        ({"name": "cosine", "warmup": 10, "warmup_init": LR / 2}, lambda t: 0.5 + 0.05 * t if t < 10 else None),
    ],
)
def test_ours_by_hand(part, by_hand):
    for step, rate in enumerate(rates(**part), 1):
        wanted = by_hand(step)
        if wanted is not None:
            assert rate == pytest.approx(LR * wanted, rel=1e-12, abs=1e-18), step


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("linear", {"name": "linear"}),
        ("cosine", {"name": "cosine"}),
        ("constant_with_warmup", {"name": "constant"}),
        ("cosine_with_restarts", {"name": "restarts"}),
    ],
)
def test_counted_from_zero_they_are_transformers(name, part):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    theirs = transformers.get_scheduler(name, optimizer, num_warmup_steps=6, num_training_steps=TOTAL)
    for rate in rates(**part, warmup=6, counts_from=0):
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-18)
        optimizer.step()
        theirs.step()


def risen(at, warmup, start=0.0):
    return start + (LR - start) * at / warmup


def half(share):
    return 0.5 * (1 + math.cos(math.pi * share))


MINDFORMERS = {
    "ConstantWarmUpLR": ({"warmup": 4, "warmup_init": 1e-5}, lambda t: risen(t, 4, 1e-5) if t < 4 else LR),
    "LinearWithWarmUpLR": ({"warmup": 4}, lambda t: risen(t, 4) if t < 4 else LR * (40 - t) / 36),
    "CosineWithWarmUpLR": (
        {"warmup": 4, "end": 1e-5},
        lambda t: risen(t, 4) if t < 4 else 1e-5 + (LR - 1e-5) * half((t - 4) / 36),
    ),
    "CosineWithRestartsAndWarmUpLR": (
        {"warmup": 4, "end": 1e-5, "cycles": 3},
        lambda t: risen(t, 4) if t < 4 else 1e-5 + (LR - 1e-5) * half(3 * (t - 4) / 36 % 1),
    ),
    "PolynomialWithWarmUpLR": (
        {"warmup": 4, "end": 1e-7, "power": 2.0},
        lambda t: risen(t, 4) if t < 4 else 1e-7 if t >= 36 else 1e-7 + (LR - 1e-7) * (1 - (t - 4) / 36) ** 2,
    ),
    "ConstantWithCoolDownLR": (
        {"warmup": 4, "keep": 10, "decay": 16, "end": 1e-5, "end_after": 2e-6},
        lambda t: (
            risen(t, 4) if t < 4 else LR if t < 14 else 1e-5 + (LR - 1e-5) * half((t - 14) / 16) if t < 30 else 2e-6
        ),
    ),
    "WarmUpStableDecayLR": (
        {"warmup": 4, "decay_start": 30, "end": 1e-7},
        lambda t: risen(t, 4) if t < 4 else LR if t < 30 else LR + (1e-7 - LR) * (t - 30) / 10,
    ),
    "CosineAnnealingLR": ({"decay": 10, "end": 1e-6}, lambda t: 1e-6 + (LR - 1e-6) * half(t / 10)),
    "CosineAnnealingWarmRestarts": (
        {"decay": 5, "cycles": 2, "end": 1e-6},
        lambda t: (
            1e-6 + (LR - 1e-6) * half(next((t - s) / n for s, n in ((0, 5), (5, 10), (15, 20), (35, 40)) if t < s + n))
        ),
    ),
}


@pytest.mark.parametrize("name", MINDFORMERS)
def test_mindformers_count_from_zero(name):
    part, by_hand = MINDFORMERS[name]
    for at, rate in enumerate(rates(name=name, **part)):
        assert rate == pytest.approx(by_hand(at), rel=1e-9, abs=1e-9), at


def test_annealing_with_restarts_is_torchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5, 2, 1e-6)
    for rate in rates(name="CosineAnnealingWarmRestarts", decay=5, cycles=2, end=1e-6):
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_a_schedule_may_be_longer_than_its_run():
    assert rate_at(SchedulePart(name="cosine", total=80), LR, TOTAL, TOTAL) == pytest.approx(LR / 2)
