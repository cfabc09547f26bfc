"""What passes depend on: a change of parts, hooks, attributes, places or surroundings is seen, one of values is not."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from modelwright.engine.fingerprint import Fingerprint
from modelwright.layers import LocalDispatcher
from tests.fakes import tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama


@dataclass
class Setting:
    """Equal to any other of the same number, which does not make it the same object."""

    number: int = 1


class Plain(nn.Module):
    """Attributes of every kind that a module may name."""

    def __init__(self) -> None:
        super().__init__()
        self.eps, self.name, self.dtype = 1e-6, "plain", torch.float32
        self.widths, self.nested = [4, 4], {"a": [1, {"b": 2}]}
        self.setting, self.several = Setting(), (Setting(), [Setting()])
        self.config = SimpleNamespace(inner=SimpleNamespace(top_k=2))
        self.function: Callable[..., Any] = len
        self.tensor = torch.zeros(1)
        self.register_buffer("one", torch.zeros(1))
        self.hidden = [nn.Linear(2, 2)]

    def forward(self, x: Any) -> Any:
        return x


def model() -> Any:
    layers = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), Plain())
    return nn.Sequential(nn.Linear(4, 4), layers)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "another layer": lambda it: it[1].__setitem__(0, nn.Linear(4, 4)),
    "one more layer": lambda it: it[1].append(nn.Identity()),
    "no layer": lambda it: it.__delitem__(0),
    "a hook": lambda it: it[1][0].register_forward_hook(lambda *_: None),
    "a hook before": lambda it: it[0].register_forward_pre_hook(lambda *_: None),
    "a hook of gradients": lambda it: it[0].register_full_backward_hook(lambda *_: None),
    "a hook in another dictionary": lambda it: setattr(it[0], "_forward_hooks", OrderedDict({1: print})),
    "a moved weight": lambda it: setattr(it[0].weight, "data", it[0].weight.data.clone()),
    "a turned weight": lambda it: setattr(it[0].weight, "data", it[0].weight.data.t()),
    "a weight cut short": lambda it: setattr(it[0].weight, "data", it[0].weight.data[:2]),
    "a buffer read as another type": lambda it: setattr(it[1][2].one, "data", it[1][2].one.data.view(torch.int32)),
    "another weight": lambda it: setattr(it[0], "weight", nn.Parameter(it[0].weight.data)),
    "a bias": lambda it: setattr(it[1][0], "bias", nn.Parameter(torch.zeros(4))),
    "another buffer": lambda it: setattr(it[1][1], "running_mean", torch.zeros(4)),
    "an equal buffer of one number": lambda it: setattr(it[1][2], "one", torch.zeros(1)),
    "an equal tensor": lambda it: setattr(it[1][2], "tensor", torch.zeros(1)),
    "another type": nn.Module.half,
    "training": nn.Module.eval,
    "a number": lambda it: setattr(it[1][2], "eps", 1e-5),
    "a name": lambda it: setattr(it[1][2], "name", "other"),
    "a type": lambda it: setattr(it[1][2], "dtype", torch.bfloat16),
    "a new attribute": lambda it: setattr(it[1][2], "more", None),
    "an attribute less": lambda it: delattr(it[1][2], "eps"),
    "a number in a list": lambda it: it[1][2].widths.append(1),
    "a number in a list in a dictionary": lambda it: it[1][2].nested["a"][1].update(b=3),
    "an equal object": lambda it: setattr(it[1][2], "setting", Setting()),
    "a number of an object": lambda it: setattr(it[1][2].setting, "number", 2),
    "a number of an object in a list": lambda it: setattr(it[1][2].several[1][0], "number", 2),
    "a number of an object of an object": lambda it: setattr(it[1][2].config.inner, "top_k", 1),
    "a module that is no child": lambda it: setattr(it[1][2].hidden[0], "bias", None),
    "a function": lambda it: setattr(it[1][2], "function", sum),
    "a forward": lambda it: setattr(it[0], "forward", it[0].forward),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change):
    it = model()
    taken = Fingerprint.of(it)
    assert taken.holds()
    CHANGES[change](it)
    assert not taken.holds()
    assert Fingerprint.of(it).holds()


def test_a_change_after_an_exchange_by_an_equal_is_seen():
    """Of an object that is not the one that was there, but as good as that for a while."""
    it = model()
    taken = Fingerprint.of(it)
    it[1][2].widths = [4, 4]
    assert taken.holds()
    it[1][2].widths[0] = 5
    assert not taken.holds()
    taken = Fingerprint.of(it)
    it[0]._forward_hooks = OrderedDict()
    assert taken.holds()
    it[0].register_forward_hook(lambda *_: None)
    assert not taken.holds()


def test_another_hook_in_the_place_of_one_is_seen():
    it = model()
    handle = it[0].register_forward_hook(lambda *_: None)
    taken = Fingerprint.of(it)
    handle.remove()
    it[1].register_forward_hook(lambda *_: None)
    assert not taken.holds()


def test_another_forward_of_a_class_is_seen(monkeypatch):
    taken = Fingerprint.of(model())
    monkeypatch.setattr(Plain, "forward", lambda self, x: -x)
    assert not taken.holds()


def test_what_python_writes_into_a_class_is_no_part_of_it():
    """A class of some Pythons has no annotations of its own until they are read; a look for its methods reads them."""

    class New(nn.Module):
        def forward(self, x: Any) -> Any:
            return x

    taken, names = Fingerprint.of(New()), set(vars(New))
    assert [getattr(New, name) for name in dir(New)] and set(vars(New)) > names
    assert taken.holds()
    New.forward = lambda self, x: -x
    assert not taken.holds()


def test_a_hook_of_all_modules_is_seen():
    taken = Fingerprint.of(model())
    handle = register_module_forward_hook(lambda *_: None)
    with_hook = Fingerprint.of(model())
    try:
        assert not taken.holds() and with_hook.holds()
    finally:
        handle.remove()
    assert taken.holds() and not with_hook.holds()


def test_another_number_of_threads_and_autocast_are_seen():
    taken, before = Fingerprint.of(model()), torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert not taken.holds()
    finally:
        torch.set_num_threads(before)
    with torch.autocast("cpu", torch.bfloat16):
        assert not taken.holds()
    assert taken.holds()


def test_values_are_no_part_of_it():
    it = model()
    taken = Fingerprint.of(it)
    with torch.no_grad():
        it[0].weight.fill_(3)
    it(torch.ones(2, 4)).sum().backward()
    it.register_forward_hook(lambda *_: None).remove()
    assert taken.holds()


def test_a_container_that_holds_itself_is_no_trouble():
    it = nn.Identity()
    it.ring = ring = []  # type: ignore[assignment]
    ring.append({"ring": ring, "owner": it})
    taken = Fingerprint.of(it)
    assert taken.holds()
    ring.append(1)
    assert not taken.holds()


@pytest.mark.parametrize("make", [tiny_v2, tiny_vl2, lambda: tiny_llama(base=HUGGING_FACE), tiny_imagegpt])
def test_what_our_models_name_is_looked_at(make):
    """Their configs, and what moves tokens to experts, whose attributes are watched as a module's are."""
    it = make()
    taken = Fingerprint.of(it)
    config = it.config.get_text_config()
    config.use_cache = not config.use_cache
    assert not taken.holds()
    config.use_cache = not config.use_cache
    assert taken.holds()
    for part in it.modules():
        if hasattr(part, "dispatch"):
            part.dispatch = LocalDispatcher()
            assert not taken.holds()
