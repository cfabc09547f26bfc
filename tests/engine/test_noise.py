"""The noise: known words of SplitMix64, Gumbel's distribution, and dependence on nothing but its three arguments."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.engine.noise import gumbel, sample_key, stream, streams_of

EULER = 0.5772156649015329


def test_the_hash_is_splitmix64():
    """The first outputs of the published generator seeded with 1234567."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [stream(1234567, position) % 2**64 for position in range(3)] == known


def test_the_noise_is_gumbels():
    noise = gumbel(streams_of([(sample_key(5), 0)]), torch.arange(400_000))[0].double()
    assert torch.isfinite(noise).all()
    assert abs(noise.mean() - EULER) < 0.01
    assert abs(noise.var() - math.pi**2 / 6) < 0.02
    for quantile in (0.001, 0.1, 0.5, 0.9, 0.999):
        below = (noise < -math.log(-math.log(quantile))).double().mean()
        assert abs(below - quantile) < 4 * math.sqrt(quantile * (1 - quantile) / 400_000)


def test_neighbouring_draws_are_not_correlated():
    draws = [(sample_key(seed, index), position) for seed in range(4) for index in range(3) for position in range(5)]
    noise = gumbel(streams_of(draws), torch.arange(5000)).double()
    correlation = torch.corrcoef(noise) - torch.eye(len(draws))
    assert correlation.abs().max() < 5 / math.sqrt(5000)


@settings(max_examples=40)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**20), st.lists(st.integers(0, 2**18), min_size=1, max_size=40))
def test_a_tokens_noise_is_the_same_among_any_others(seed, position, ids):
    streams = streams_of([(sample_key(seed), position), (3, 4)])
    together = gumbel(streams, torch.tensor(ids))
    alone = torch.stack([gumbel(streams[:1], torch.tensor([id_]))[0, 0] for id_ in ids])
    assert torch.equal(together[0], alone)
    assert torch.equal(gumbel(streams, torch.tensor([ids, ids])), together)


def test_the_samples_of_a_request_have_keys_of_their_own():
    keys = {sample_key(seed, index) for seed in range(100) for index in range(100)}
    assert len(keys) == 10_000
    assert sample_key(2**63 - 1) < 2**64
