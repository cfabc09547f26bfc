"""Choosing tokens with numpy: the probabilities that transformers' own warpers leave, and draws that follow them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from modelwright.errors import RequestFailed
from modelwright.export.sampling import Sampling


@given(
    seed=st.integers(0, 999),
    temperature=st.floats(0.3, 3),
    top_k=st.integers(0, 25),
    top_p=st.sampled_from([0.1, 0.5, 0.77, 0.95, 1.0]),
)
def test_probabilities_are_those_of_transformers(seed, temperature, top_k, top_p):
    scores = np.random.default_rng(seed).normal(size=(3, 20))
    expected = TemperatureLogitsWarper(temperature)(torch.zeros(1), torch.from_numpy(scores))
    if top_k:
        expected = TopKLogitsWarper(top_k)(torch.zeros(1), expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(torch.zeros(1), expected)
    found = Sampling(temperature, top_k, top_p).probabilities(scores)
    np.testing.assert_allclose(found, expected.softmax(dim=-1).numpy(), atol=1e-12)


def test_draws_follow_the_probabilities():
    scores = np.log(np.tile([[0.5, 0.0001, 0.3, 0.2]], (20_000, 1))).astype(np.float32)
    drawn = Sampling(1.0, top_k=3).choose(scores, np.random.default_rng(0))
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, [0.5, 0, 0.3, 0.2], atol=0.015)
    assert shares[1] == 0


def test_no_heat_takes_the_best():
    scores = np.array([[0.0, 2.0, 1.0], [5.0, 2.0, 5.0]])
    np.testing.assert_array_equal(Sampling().choose(scores, np.random.default_rng(0)), [1, 0])


def test_what_the_engine_takes_for_the_best_is_the_best_here_too():
    scores = np.array([[0.0, 2.0, 1.0], [5.0, 2.0, 5.0]], np.float32)
    for how in (
        {"temperature": 1e-40},
        {"temperature": 9e-6},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 1e-5},
    ):
        chosen = Sampling(**how).choose(scores, np.random.default_rng(0))
        assert chosen[0] == 1 and chosen[1] in (0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_no_numbers_raise(bad, temperature):
    scores = np.array([[0.0, 2.0, 1.0], [5.0, bad, 5.0]], np.float32)
    with pytest.raises(RequestFailed, match=r"scores of the next token are (NaN|infinite) in float32"):
        Sampling(temperature).choose(scores, np.random.default_rng(0))
