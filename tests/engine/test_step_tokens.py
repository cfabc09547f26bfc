"""The tokens of a step where nobody says how many: by the device and the type, and never fewer than sequences."""

from dataclasses import replace

import pytest
import torch

from modelwright.engine import step_tokens as module
from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.params import SamplingParams
from modelwright.engine.served_model import ServedModel
from modelwright.engine.step_tokens import step_tokens
from tests.llamas import tiny_llama


@pytest.fixture
def served():
    return ServedModel.of(tiny_llama(seq_length=2000))


CHOSEN = EngineConfig(token_budget=None)


@pytest.mark.parametrize(
    ("device", "dtype", "shared"),
    [
        ("cpu", torch.float32, 512),
        ("cpu", torch.bfloat16, None),
        ("cuda", torch.float32, None),
        ("cuda", torch.bfloat16, None),
    ],
)
def test_products_that_are_made_in_another_type_take_longer_steps(monkeypatch, served, device, dtype, shared):
    monkeypatch.setattr(module, "torch_lacks", lambda dtype: dtype == torch.bfloat16)
    assert step_tokens(replace(served, device=torch.device(device), dtype=dtype), CHOSEN) == (2048, shared)


def test_what_was_asked_for_is_taken(served):
    assert step_tokens(served, EngineConfig(token_budget=64)) == (64, None)
    assert step_tokens(served, EngineConfig()) == (2048, None)


def test_every_sequence_finds_room_in_a_step(served):
    assert step_tokens(served, EngineConfig(token_budget=None, max_batch=3000)) == (3000, 512)


def prompt(first, length):
    return [first, *((first + index) % 30 + 1 for index in range(length - 1))]


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (None, [([1100], 1), ([300, 300, 300], 2), ([700, 900], 3)]),
        (2048, [([1100], 1), ([300, 300, 300], 1), ([700, 900], 1)]),
    ],
)
def test_prompts_of_several_are_read_in_shorter_steps(budget, steps):
    engine = Engine(tiny_llama(seq_length=2000), EngineConfig(num_pages=200, token_budget=budget))
    for turn, (lengths, wanted) in enumerate(steps):
        for number, length in enumerate(lengths):
            engine.add_request(prompt(3 * turn + number + 1, length), SamplingParams(max_tokens=1))
        taken = 0
        while engine.has_work:
            engine.step()
            taken += 1
        assert taken == wanted


def test_prompts_of_half_a_step_go_two_to_a_step_beside_whoever_draws():
    engine = Engine(tiny_llama(seq_length=2000), EngineConfig(num_pages=200, token_budget=None))
    for number in range(3):
        engine.add_request(prompt(number + 1, 20), SamplingParams(max_tokens=50, ignore_eos=True))
    engine.step()
    for number in range(4):
        engine.add_request(prompt(number + 4, 256), SamplingParams(max_tokens=1), id=f"comes {number}")
    told = [sorted(update.request for update in engine.step() if update.request.startswith("comes")) for _ in range(2)]
    assert told == [["comes 0", "comes 1"], ["comes 2", "comes 3"]]


def test_whoever_draws_waits_for_no_long_step_and_is_answered_alike():
    """The same tokens, whatever the steps; the second prompt comes while the first draws."""
    found = []
    for budget in (None, 2048):
        engine = Engine(tiny_llama(seq_length=2000), EngineConfig(num_pages=200, token_budget=budget))
        params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
        engine.add_request(prompt(1, 40), params, id="draws")
        updates = list(engine.step())
        engine.add_request(prompt(2, 1000), params, id="comes")
        before = 0
        while engine.has_work:
            new = engine.step()
            before += not any(update.request == "comes" for update in updates + new)
            updates += new
        found.append((before, sorted((update.request, update.tokens) for update in updates)))
    assert (found[0][0], found[1][0]) == (1, 0) and found[0][1] == found[1][1]
