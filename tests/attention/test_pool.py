"""PagePool: whole pages moved to another pool and back, whatever is stored of a token."""

import mmap
from pathlib import Path

import pytest
import torch

from modelwright.attention import PagePool
from modelwright.ops import host_memory


@pytest.fixture(params=["grouped", "latent"])
def make(request):
    """Pools of so many pages."""
    if request.param == "grouped":
        return lambda pages, dtype: PagePool.grouped(pages, 4, 2, 8, 6, dtype)
    return lambda pages, dtype: PagePool.latent(pages, 4, 16, 8, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_pages_that_were_moved_to_another_pool_and_back_are_the_same(make, dtype):
    device, host, generator = make(5, dtype), make(3, dtype), torch.Generator().manual_seed(0)
    keys, values = (torch.randn(8, *part.rows.shape[2:], generator=generator) for part in (device.keys, device.values))
    device.write(torch.arange(4, 12), keys, values)  # pages 1 and 2
    table = torch.tensor([1, 2])
    wanted = device.read(table, 8, torch.float32)
    device.move(host, [(1, 2), (2, 0)])
    for stored in device.stored:
        stored.zero_()
    host.move(device, [(2, 4), (0, 3)])
    for found, part in zip(device.read(torch.tensor([4, 3]), 8, torch.float32), wanted, strict=True):
        assert part.any() and torch.equal(found, part)
    for found in device.read(torch.tensor([0, 1, 2]), 12, torch.float32):
        assert not found.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_what_is_stored_is_all_that_keys_and_values_are_made_of(make, dtype):
    pool = make(3, dtype)
    parts = [part for pages in (pool.keys, pool.values) for part in (pages.rows, pages.scales) if part is not None]
    assert sum(stored.numel() * stored.itemsize for stored in pool.stored) == sum(p.numel() * p.itemsize for p in parts)
    assert {part.untyped_storage().data_ptr() for part in parts} == {
        stored.untyped_storage().data_ptr() for stored in pool.stored
    }


@pytest.mark.skipif(not host_memory.ON_REQUEST, reason="elsewhere the memory is torch's")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_large_pool_takes_memory_as_it_is_filled(dtype):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = resident()
    pool = PagePool.grouped(4000, 16, 8, 128, 128, dtype)
    nbytes = sum(stored.nbytes for stored in pool.stored)
    assert nbytes > 120 << 20
    assert resident() - before < nbytes // 8
    pool.write(torch.arange(16), torch.ones(16, 8, 128), torch.ones(16, 8, 128))
    assert torch.equal(pool.read(torch.tensor([0]), 16, torch.float32)[1], torch.ones(16, 8, 128))
    assert not any(part.any() for part in pool.read(torch.tensor([3999]), 16, torch.float32))
    assert resident() - before < nbytes // 8
