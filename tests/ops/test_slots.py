"""Slots, the compiled kernel's and torch's, against attention over everything in float64."""

import pytest
import torch

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.slots import TorchSlots, make_slots

CPU = torch.device("cpu")
SHAPES = {
    "one of all": (1, 1, 1, 40),
    "whole vectors": (2, 3, 64, 40),
    "odd widths": (3, 2, 21, 33),
    "wide": (1, 2, 80, 17),
}
BOUND = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def exact(joined, heads, scale):
    """The last token's result from all tokens' ``[batch, tokens, 3 * heads * dim]``, in float64."""
    batch, tokens, _ = joined.shape
    q, k, v = (part.view(batch, tokens, heads, -1).transpose(1, 2) for part in joined.double().chunk(3, dim=-1))
    weights = (q[:, :, -1:] @ k.transpose(2, 3) * scale).softmax(-1)
    return (weights @ v)[:, :, 0].flatten(1)


def parts(joined, heads):
    """Keys and values ``[batch, heads, tokens, dim]`` of all tokens."""
    batch, tokens, _ = joined.shape
    return [part.view(batch, tokens, heads, -1).transpose(1, 2) for part in joined.chunk(3, dim=-1)[1:]]


@pytest.fixture(params=["kernel", "torch"])
def make(request):
    if request.param == "kernel":
        return make_slots
    return lambda batch, heads, dim, slots, scale, kept, computed, device: TorchSlots(
        batch, heads, dim, slots, scale, kept, device
    )


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("given", [0, 1, 16, 17])
@pytest.mark.parametrize(("batch", "heads", "dim", "slots"), SHAPES.values(), ids=list(SHAPES))
def test_every_token_meets_all_before_it(make, dtype, given, batch, heads, dim, slots):
    torch.manual_seed(1)
    joined = torch.randn(batch, slots, 3 * heads * dim).to(dtype)
    own = make(batch, heads, dim, slots, 0.7, torch.float32, dtype, CPU)
    if given:
        own.fill(*parts(joined[:, :given], heads))
    for known in range(given, slots):
        found = own.attend(joined[:, known], known)
        assert found.dtype == dtype
        wanted = exact(joined[:, : known + 1], heads, 0.7)
        assert (found.double() - wanted).abs().max() < BOUND[dtype] * wanted.abs().max().clamp(min=1)


def test_halves_are_kept_as_halves_and_summed_in_fp32():
    joined = torch.randn(2, 50, 3 * 4 * 32, dtype=torch.bfloat16)
    own = make_slots(2, 4, 32, 50, 0.2, torch.bfloat16, torch.bfloat16, CPU)
    assert isinstance(own, kernels.KernelSlots)
    assert own.keys.dtype == own.values.dtype == torch.bfloat16
    for known in range(50):
        found = own.attend(joined[:, known], known)
    wanted = exact(joined, 4, 0.2)
    assert (found.double() - wanted).abs().max() <= wanted.abs().max() * 2**-8  # half a step of the result alone


def test_scores_far_apart_stay_numbers(make):
    own = make(1, 1, 4, 20, 1.0, torch.float32, torch.float32, CPU)
    for known, (query, kept) in enumerate([(0.0, 300.0), (0.0, -300.0), (300.0, 0.0)]):
        found = own.attend(torch.tensor([[query] * 4 + [kept] * 8]), known)
    assert torch.equal(found, torch.full((1, 4), 300.0))  # scores of 360000, -360000 and 0: the first alone counts


def test_threads_do_not_change_the_numbers(three_threads):
    joined = torch.randn(2, 200, 3 * 8 * 64)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        own = make_slots(2, 8, 64, 200, 0.125, torch.float32, torch.float32, CPU)
        found.append([own.attend(joined[:, known], known) for known in range(200)][-1])
    assert torch.equal(*found)


def test_the_kernel_serves_what_it_knows_and_torch_the_rest(monkeypatch):
    def kind(kept, computed, device=CPU):
        return type(make_slots(1, 1, 4, 4, 1.0, kept, computed, device))

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    assert kind(single, single) is kind(half, half) is kind(single, half) is kernels.KernelSlots
    assert kind(double, double) is kind(half, single) is kind(single, single, torch.device("meta")) is TorchSlots
    monkeypatch.setattr(kernels, "serves_slots", lambda *what: False)
    assert kind(single, single) is TorchSlots
