"""First weights by name, and random numbers that others do not move."""

import pytest
import torch

from modelwright.training.seeds import draw_first_weights, seed_of
from tests.training.learners import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_first_weights_are_drawn_by_name(name):
    """Of two models built at different times, and of a stage that holds one of the layers."""
    first, second, stage = (MODELS[name](seed=seed) for seed in (0, 1, 2))
    stage.keep_stage(range(1, 2), embedding=False, head=True)
    for model in (first, second, stage):
        draw_first_weights(model, 5)
    state, own = first.state_dict(), stage.state_dict()
    assert 0 < len(own) < len(state)
    for key, tensor in second.state_dict().items():
        assert torch.equal(tensor, state[key]), key
        assert key not in own or torch.equal(own[key], tensor), key
    draw_first_weights(second, 6)
    assert any(not torch.equal(tensor, state[key]) for key, tensor in second.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_they_are_what_the_constructor_draws(name):
    """By their deviation, parameter by parameter."""
    first, second = MODELS[name](), MODELS[name]()
    draw_first_weights(second, 5)
    for (key, ours), theirs in zip(second.named_parameters(), first.parameters(), strict=True):
        assert (ours.std(correction=0) == 0) == (theirs.std(correction=0) == 0), key
        if ours.numel() >= 512:
            assert float(ours.detach().std()) == pytest.approx(float(theirs.detach().std()), rel=0.25), key


def test_a_seed_is_of_its_names():
    assert len({seed_of(0, 1, 2), seed_of(0, 12), seed_of(1, 1, 2), seed_of(0, "1/2"), seed_of(0, 2, 1)}) == 4
