"""Pages: what is stored comes back, nothing else moves, and int8 rounds by half a scale at most."""

import pytest
import torch

from modelwright.ops.page_writes import write_pages
from modelwright.ops.pages import Pages, copy_pages, dequantise_rows, quantise_rows, read_pages, slots_of


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_off_by_half_a_scale_at_most(size, dtype):
    torch.manual_seed(0)
    rows = (torch.randn(3, 5, 16) * size).to(dtype)
    steps, scales = quantise_rows(rows)
    assert steps.dtype == torch.int8 and scales.shape == (3, 5)
    back = dequantise_rows(steps, scales, torch.float32)
    torch.testing.assert_close(scales, rows.float().abs().amax(-1) / 127)
    assert ((back - rows.float()).abs() <= scales[..., None] * 0.5001).all()


def test_zeros_stay_zeros_in_int8():
    steps, scales = quantise_rows(torch.zeros(2, 4))
    assert torch.equal(dequantise_rows(steps, scales, torch.float32), torch.zeros(2, 4))


def test_slots_follow_the_table():
    assert slots_of([5, 2, 7], page_size=4, start=3, stop=9) == [23, 8, 9, 10, 11, 28]


def test_written_rows_come_back_and_nothing_else_moves():
    pages = Pages(torch.full((4, 3, 2, 5), torch.nan))
    values = torch.randn(4, 2, 5)
    write_pages(pages, torch.tensor(slots_of([3, 1], 3, 0, 4)), values)
    assert torch.equal(read_pages(pages, torch.tensor([3, 1]), 4, torch.float32), values)
    assert pages.rows.isnan().sum() == (12 - 4) * 10
    assert torch.equal(read_pages(pages, torch.tensor([3, 1, 99]), 3, torch.float64), values[:3].double())


def test_copies_are_read_before_they_are_written():
    pages = Pages(torch.arange(6.0).view(3, 2, 1))
    copy_pages(pages, [(0, 1), (1, 2)])
    assert pages.rows.flatten().tolist() == [0, 1, 0, 1, 2, 3]
    copy_pages(pages, [])
