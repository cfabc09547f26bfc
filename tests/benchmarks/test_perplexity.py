"""llama.cpp's formats as `benchmarks.perplexity` writes them, on numbers that can be followed by hand."""

import torch

from benchmarks.perplexity import q4_0, q8_0


def block(*first: float) -> torch.Tensor:
    """One row of one block, zeros behind."""
    row = torch.zeros(1, 32)
    row[0, : len(first)] = torch.tensor(first)
    return row


def test_the_largest_magnitude_is_127_steps_of_q8_0():
    found = q8_0(block(127.0, -63.4, 63.6, 0.4, -0.6))
    assert found[0, :5].tolist() == [127.0, -63.0, 64.0, 0.0, -1.0]


def test_the_number_of_largest_magnitude_is_minus_eight_steps_of_q4_0():
    found = q4_0(block(-8.0, 8.0, 3.4, 3.6, -7.6, 0.2))
    assert found[0, :6].tolist() == [-8.0, 7.0, 3.0, 4.0, -8.0, 0.0]
    assert q4_0(block(8.0, -8.0, 3.4))[0, :3].tolist() == [8.0, -7.0, 3.0]  # steps of -1


def test_scales_are_of_fp16_and_each_block_has_its_own():
    row = torch.cat([block(0.1), block(1000.0)], dim=1)
    for rounding, most in ((q8_0, 127), (q4_0, -8)):
        scales = [float(torch.tensor(value / most).half()) for value in (0.1, 1000.0)]
        assert rounding(row)[0, [0, 32]].tolist() == [scales[0] * most, scales[1] * most]


def test_zeros_stay():
    assert not q8_0(block()).any() and not q4_0(block()).any()
