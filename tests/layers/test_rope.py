"""The rotary module: every extension, positions of any kind, and rows that do not notice each other."""

import math

import pytest
import torch

from modelwright.layers import RotaryEmbedding
from modelwright.ops.rotary import inverse_frequencies


def angles(rope: RotaryEmbedding, positions: list[list[int]]) -> torch.Tensor:
    """``[batch, tokens, dim/2]`` modulo a turn, from the cosines and sines."""
    rotation = rope(torch.tensor(positions))
    return torch.atan2(rotation.sin, rotation.cos)


def test_plain_and_linear_angles():
    positions = [[0, 1, 6]]
    plain = torch.tensor(positions)[..., None] * torch.tensor([1.0, 0.1])
    torch.testing.assert_close(angles(RotaryEmbedding(4, 100.0), positions).cos(), plain.cos())
    torch.testing.assert_close(angles(RotaryEmbedding(4, 100.0, kind="linear", factor=2.0), positions), plain / 2)


def test_dynamic_stretches_each_row_by_its_own_length():
    rope = RotaryEmbedding(4, 100.0, kind="dynamic", factor=2.0, trained_length=16)
    frequencies = rope.frequencies(torch.tensor([[1, 15], [22, 23]]))
    assert frequencies.shape == (2, 1, 2)
    torch.testing.assert_close(frequencies[:, 0], torch.stack([inverse_frequencies(4, b) for b in (100.0, 400.0)]))
    together, short = rope(torch.tensor([[1, 15], [22, 23]])), rope(torch.tensor([[1, 15]]))
    assert torch.equal(together.cos[:1], short.cos) and torch.equal(together.sin[:1], short.sin)


def test_yarn_scales_tables_and_softmax():
    shape = {"kind": "yarn", "factor": 40.0, "trained_length": 4096}
    rope = RotaryEmbedding(64, 10000.0, **shape, mscale=1.0, mscale_all_dim=0.5)
    gain, gain_all = 1 + 0.1 * math.log(40), 1 + 0.05 * math.log(40)
    assert rope(torch.tensor([[0]])).cos[0, 0, 0].item() == pytest.approx(gain / gain_all)
    assert rope.softmax_gain == pytest.approx(gain_all**2)


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic"])
def test_other_kinds_leave_the_softmax_alone(kind):
    rope = RotaryEmbedding(4, 100.0, kind=kind, factor=40.0, trained_length=8, mscale_all_dim=1.0)
    assert (rope.scale, rope.softmax_gain) == (1.0, 1.0)


def test_yarn_without_mscale_all_dim_leaves_the_softmax_alone():
    rope = RotaryEmbedding(4, 100.0, kind="yarn", factor=40.0, trained_length=8)
    assert rope.softmax_gain == 1.0
    assert rope.scale == pytest.approx(1 + 0.1 * math.log(40))


def test_tables_do_not_depend_on_earlier_calls_or_on_the_models_type():
    rope = RotaryEmbedding(8, 10000.0, interleaved=True).to(torch.bfloat16)
    first = rope(torch.tensor([[70000]]))
    rope(torch.tensor([[3]]))
    assert torch.equal(rope(torch.tensor([[70000]])).cos, first.cos)
    assert first.cos.dtype == torch.float32
    assert not rope.state_dict()


def test_the_layout_is_chosen_by_name():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    at_zero = torch.tensor([[0]])
    assert RotaryEmbedding(4, 100.0)(at_zero)(x).flatten().tolist() == [1, 2, 3, 4]
    assert RotaryEmbedding(4, 100.0, interleaved=True)(at_zero)(x).flatten().tolist() == [1, 3, 2, 4]


def test_tables_and_rotation_in_another_type():
    positions, x = torch.tensor([[3, 70000]]), torch.randn(1, 1, 2, 8)
    wide, narrow = RotaryEmbedding(8, 1e4), RotaryEmbedding(8, 1e4, dtype=torch.bfloat16)
    assert torch.equal(narrow(positions).cos, wide(positions).cos.bfloat16())
    assert narrow(positions)(x).dtype == torch.float32
    assert not torch.equal(narrow(positions)(x), wide(positions)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_matrix_rotates_as_the_slices_do(dtype):
    positions, x = torch.tensor([[3, 70000]]), torch.randn(1, 2, 2, 8)
    slices, matrix = (RotaryEmbedding(8, 1e4, dtype=dtype, by_matrix=way) for way in (False, True))
    assert torch.equal(slices(positions)(x), matrix(positions)(x))


def test_mindformers_dynamic_ntk_grows_in_steps():
    rope = RotaryEmbedding(8, 100.0, kind="dynamic_ntk", trained_length=16)
    positions = torch.tensor([[0, 15], [0, 16], [0, 40]])
    frequencies = rope.frequencies(positions)[:, 0]
    bases = [100.0, 100.0 * 3 ** (8 / 6), 100.0 * 7 ** (8 / 6)]
    torch.testing.assert_close(frequencies, torch.stack([inverse_frequencies(8, base) for base in bases]))
    gains = rope(positions).cos[:, 0, 0]
    torch.testing.assert_close(gains, torch.tensor([1.0, 1 + 0.1 * math.log(17 / 16), 1 + 0.1 * math.log(41 / 16)]))
