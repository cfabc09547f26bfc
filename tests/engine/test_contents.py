"""What weights are worth: every way of changing them is seen, by torch's count, by a sample, or by the optimizer."""

import gc
from collections.abc import Callable
from weakref import ref

import pytest
import torch
from torch import Tensor, nn

from modelwright.engine import contents
from modelwright.engine.contents import Contents

CHANGES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda weight: weight.detach().mul_(2),
    "one number": lambda weight: weight.detach().view(-1)[77:78].add_(1),
    "copied": lambda weight: weight.detach().copy_(torch.ones_like(weight)),
    "through data": lambda weight: weight.data.add_(1),
    "through numpy": lambda weight: weight.detach().numpy().fill(3),
    "other memory": lambda weight: setattr(weight, "data", torch.ones_like(weight)),
    "equal numbers elsewhere": lambda weight: setattr(weight, "data", weight.data.clone()),
    "no memory": lambda weight: weight.untyped_storage().resize_(0),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", [(9, 9), (512, 512), (1024, 1024)])
def test_a_change_is_seen(shape, change):
    others = [torch.zeros(64, 64) for _ in range(9)]
    weight = nn.Parameter(torch.zeros(*shape))
    taken = Contents([*others, weight])
    assert taken.hold() and taken.hold()
    CHANGES[change](weight)
    assert not taken.hold()


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_that_steps_is_seen_whatever_numbers_it_changes(fused):
    """One row in the middle of a quarter, where no sample is taken; fused, torch does not count it."""
    weight, other = nn.Parameter(torch.zeros(1024, 1024)), nn.Parameter(torch.zeros(3))
    taken = Contents([weight])
    weight.grad, other.grad = torch.zeros_like(weight), torch.ones(3)
    weight.grad[300] = 1
    torch.optim.SGD([other], lr=1.0, fused=fused).step()
    assert taken.hold()
    torch.optim.SGD([weight], lr=1.0, fused=fused).step()
    assert not taken.hold() and Contents([weight]).hold()


def test_tensors_that_torch_does_not_count_are_compared():
    with torch.inference_mode():
        weight = torch.zeros(64)
    taken = Contents([weight])
    assert taken.hold()
    with torch.inference_mode():
        weight[3] = 1
    assert not taken.hold()


def test_tensors_of_all_kinds_can_be_asked():
    """Turned, spread out, empty, of few bits, elsewhere: none is in the way of the others."""
    base = torch.zeros(64, 64)
    kinds = [base.t(), base[::2, 1::3], torch.zeros(0), torch.zeros(3, dtype=torch.bool), torch.zeros(2, device="meta")]
    taken = Contents([*kinds, torch.eye(3).to_sparse(), torch.zeros(3)[None].expand(4, 3)])
    assert taken.hold()
    base.data[2, 1] = 1
    assert not taken.hold()


def test_nothing_at_all_holds():
    assert Contents([]).hold()


def test_memory_that_a_weight_gives_up_is_free(monkeypatch):
    """And is not read: a model moved to another type or device does not stay where it was as well."""
    weight = nn.Parameter(torch.zeros(1 << 16))
    taken, memory = Contents([weight]), ref(weight.untyped_storage())
    weight.data = torch.ones(1 << 16)
    gc.collect()
    assert memory() is None and not taken.hold()


@pytest.mark.slow
def test_who_is_gone_hears_no_optimizer():
    gc.collect()
    before = len(contents._watching)
    taken = Contents([torch.zeros(3)])
    assert len(contents._watching) == before + 1
    del taken
    gc.collect()
    assert len(contents._watching) == before
