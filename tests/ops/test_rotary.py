"""Frequencies against hand-computed values and transformers' published functions; the two pair layouts."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from modelwright.ops.rotary import (
    dynamic_ntk_theta,
    inverse_frequencies,
    rope_table,
    rotate_half_split,
    rotate_interleaved,
    yarn_frequencies,
    yarn_mscale,
)

DIM, THETA = 64, 10000.0


def transformers_frequencies(rope: dict, seq_len: int | None = None) -> tuple[torch.Tensor, float]:
    """``[dim/2]`` and the factor of cos and sin as transformers computes them."""
    config = LlamaConfig(
        hidden_size=DIM,
        num_attention_heads=1,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": THETA, **rope},
    )
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"), seq_len=seq_len)


def test_plain_frequencies_by_hand():
    torch.testing.assert_close(inverse_frequencies(4, 100.0), torch.tensor([1.0, 0.1]))
    assert inverse_frequencies(DIM, THETA)[-1].item() == pytest.approx(10000 ** (-62 / 64), rel=1e-6)


def test_linear_divides_every_frequency():
    theirs, factor = transformers_frequencies({"rope_type": "linear", "factor": 4.0})
    torch.testing.assert_close(inverse_frequencies(DIM, THETA) / 4, theirs)
    assert factor == 1.0


@pytest.mark.parametrize("length", [1, 4096, 4097, 20000])
def test_dynamic_ntk_is_that_of_transformers(length):
    theirs, _ = transformers_frequencies({"rope_type": "dynamic", "factor": 2.0}, seq_len=length)
    theta = dynamic_ntk_theta(THETA, DIM, 2.0, torch.tensor([[length]]), 4096)
    torch.testing.assert_close(inverse_frequencies(DIM, theta), theirs[None], rtol=1e-5, atol=0)


def test_dynamic_ntk_by_hand_for_each_length():
    bases = dynamic_ntk_theta(100.0, 4, 2.0, torch.tensor([8, 16, 24]), 16)
    # up to 16 unchanged; at 24 the stretch is 2 * 24/16 - 1 = 2, to the power of 4/2
    torch.testing.assert_close(bases, torch.tensor([100.0, 100.0, 400.0]))


@pytest.mark.parametrize("factor", [1.0, 4.0, 40.0])
@pytest.mark.parametrize(("fast", "slow"), [(32.0, 1.0), (16.0, 2.0), (1000.0, 0.001)])
def test_yarn_is_that_of_transformers(factor, fast, slow):
    rope = {"rope_type": "yarn", "factor": factor, "beta_fast": fast, "beta_slow": slow}
    theirs, scale = transformers_frequencies(rope | {"original_max_position_embeddings": 4096})
    torch.testing.assert_close(yarn_frequencies(DIM, THETA, factor, 4096, fast, slow), theirs, rtol=1e-5, atol=0)
    assert yarn_mscale(factor, 1.0) == pytest.approx(scale)


def test_yarn_keeps_fast_pairs_and_divides_slow_ones():
    ours, plain = yarn_frequencies(DIM, THETA, 40.0, 4096, 32.0, 1.0), inverse_frequencies(DIM, THETA)
    # pairs that turn 32 times and once in 4096 tokens: 10.47 and 22.51, widened to 10 and 23
    torch.testing.assert_close(ours[:11], plain[:11])
    torch.testing.assert_close(ours[23:], plain[23:] / 40)
    assert ours[15].item() == pytest.approx(plain[15].item() * (1 - 5 / 13 + 5 / 13 / 40), rel=1e-5)


def test_yarn_temperature():
    assert yarn_mscale(1.0, 5.0) == 1.0
    assert yarn_mscale(40.0, 0.707) == pytest.approx(1 + 0.0707 * math.log(40))
    assert yarn_mscale(40.0, 0.0) == 1.0


def test_tables_are_fp32_and_scaled():
    cos, sin = rope_table(torch.tensor([[0, 3]]), torch.tensor([1.0, 0.5]), scale=2.0)
    torch.testing.assert_close(cos, torch.tensor([[[2.0, 2.0], [2 * math.cos(3), 2 * math.cos(1.5)]]]))
    torch.testing.assert_close(sin, torch.tensor([[[0.0, 0.0], [2 * math.sin(3), 2 * math.sin(1.5)]]]))


@pytest.mark.parametrize("rotate", [rotate_half_split, rotate_interleaved])
def test_each_layout_turns_its_own_pairs(rotate):
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    quarter = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]])  # (a, b) -> (-b, a)
    expected = {rotate_half_split: [-3, -4, 1, 2], rotate_interleaved: [-2, -4, 1, 3]}
    assert rotate(x, *quarter).flatten().tolist() == expected[rotate]


@pytest.mark.parametrize("rotate", [rotate_half_split, rotate_interleaved])
def test_rotation_is_computed_in_fp32_and_keeps_the_type(rotate):
    x = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    cos, sin = rope_table(torch.tensor([[5, 6, 7]]), inverse_frequencies(8, 10000.0))
    assert rotate(x, cos, sin).dtype == torch.bfloat16
    assert torch.equal(rotate(x, cos, sin), rotate(x.float(), cos, sin).bfloat16())
