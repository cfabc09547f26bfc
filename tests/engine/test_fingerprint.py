"""What passes are made of: every change of parts, hooks, places and threads is seen; one of values is none."""

from typing import Any

import pytest
import torch
from torch import nn

from modelwright.engine.fingerprint import Fingerprint


def model() -> Any:
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)))


def replace_layer(it: Any) -> None:
    it[1][0] = nn.Linear(4, 4)


def add_layer(it: Any) -> None:
    it[1].append(nn.Identity())


def hook(it: Any) -> None:
    it[1][0].register_forward_hook(lambda *_: None)


def hook_before(it: Any) -> None:
    it[0].register_forward_pre_hook(lambda *_: None)


def move_weight(it: Any) -> None:
    it[0].weight.data = it[0].weight.data.clone()


def new_weight(it: Any) -> None:
    it[0].weight = nn.Parameter(it[0].weight.data)


def new_bias(it: Any) -> None:
    it[1][0].bias = nn.Parameter(torch.zeros(4))


def move_buffer(it: Any) -> None:
    it[1][1].running_mean = torch.zeros(4)


CHANGES = [replace_layer, add_layer, hook, hook_before, move_weight, new_weight, new_bias, move_buffer, nn.Module.half]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(change):
    it = model()
    taken = Fingerprint.of(it)
    change(it)
    assert not taken.holds()
    assert Fingerprint.of(it).holds()


def test_another_hook_in_the_place_of_one_is_seen():
    it = model()
    handle = it[0].register_forward_hook(lambda *_: None)
    taken = Fingerprint.of(it)
    handle.remove()
    it[1].register_forward_hook(lambda *_: None)
    assert not taken.holds()


def test_another_number_of_threads_is_seen():
    taken, before = Fingerprint.of(model()), torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert not taken.holds()
    finally:
        torch.set_num_threads(before)
    assert taken.holds()


def test_values_are_no_part_of_it():
    it = model()
    taken = Fingerprint.of(it)
    with torch.no_grad():
        it[0].weight.fill_(3)
    it(torch.ones(2, 4)).sum().backward()
    it.eval()
    it.register_forward_hook(lambda *_: None).remove()
    assert taken.holds()
