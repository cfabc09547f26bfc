"""Replays are the pass itself, to the last bit; one that keeps what it has once seen is found."""

import pytest
import torch

from modelwright.engine import check
from modelwright.errors import ConfigError
from modelwright.ops.backends import cpu as kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
CPU = torch.device("cpu")


def test_a_recorded_decode_is_right_here():
    assert check.replayed(CPU) == check.Replayed("record", 0.0)


class Stale:
    """A capture whose replay gives what the first run gave."""

    pads = False

    def __call__(self, forward):
        first = forward()
        return lambda: first


class Refusing(Stale):
    def __call__(self, forward):
        raise ConfigError("it asks for numbers")


def test_a_replay_that_is_not_the_pass_is_wrong(monkeypatch):
    monkeypatch.setattr(check, "TapeCapture", Stale)
    found = check.replayed(CPU)
    assert found.worst > 0.1 and not found.right


def test_a_pass_that_cannot_be_captured_is_wrong_and_says_why(monkeypatch):
    monkeypatch.setattr(check, "TapeCapture", Refusing)
    found = check.replayed(CPU)
    assert not found.right and found.refusal == "it asks for numbers"
