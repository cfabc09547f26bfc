"""What the cache holds of a token in each family, and how many pages there are."""

import pytest
import torch

from modelwright.configs.decoding import CacheLayout
from modelwright.engine.cache import count_pages, default_pages, make_pools, token_bytes
from modelwright.engine.engine_config import EngineConfig
from modelwright.engine.served_model import ServedModel
from modelwright.planner.plan import plan
from tests.fakes import MHA, tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import tiny_llama

LAYOUTS = [
    (tiny_v2, CacheLayout(2, None, 8, 16), 2 * 24),
    (lambda: tiny_v2(base=MHA), CacheLayout(2, 2, 8, 8), 2 * 2 * 16),
    (tiny_vl2, CacheLayout(2, None, 8, 16), 2 * 24),
    (tiny_llama, CacheLayout(2, 2, 8, 8), 2 * 2 * 16),
    (tiny_imagegpt, CacheLayout(2, 6, 4, 4), 2 * 6 * 8),
]


@pytest.mark.parametrize(("build", "layout", "numbers"), LAYOUTS, ids=["mla", "mha", "vl2", "llama", "imagegpt"])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_a_tokens_bytes_are_those_of_the_pools(build, layout, numbers, kv_dtype):
    served, settings = ServedModel.of(build()), EngineConfig(page_size=4, kv_dtype=kv_dtype)
    assert served.cache == layout and layout.numbers == numbers
    pools = make_pools(served, settings, 3)
    assert len(pools) == layout.layers
    parts = [part for pool in pools for pages in (pool.keys, pool.values) for part in (pages.rows, pages.scales)]
    held = sum(part.numel() * part.itemsize for part in parts if part is not None)
    dtype = torch.int8 if kv_dtype == "int8" else torch.float32
    assert held == 3 * 4 * token_bytes(layout, dtype)
    assert token_bytes(layout, torch.float32) == 4 * numbers
    planned = plan(build().config, dtype="fp32", kv_dtype=None if kv_dtype == "auto" else kv_dtype)
    assert token_bytes(layout, dtype) == planned.kv_bytes_per_token


def test_pages_are_those_asked_for_or_whole_contexts():
    served = ServedModel.of(tiny_llama())
    assert count_pages(served, EngineConfig(num_pages=7), 64) == 7
    assert count_pages(served, EngineConfig(max_batch=3, page_size=16), 50) == 10


def test_default_pages_leave_three_quarters_of_the_memory(monkeypatch):
    monkeypatch.setattr("modelwright.engine.cache._free_memory", lambda device: 4096)
    cpu = torch.device("cpu")
    assert default_pages(1000, 16, 8, cpu) == 8
    assert default_pages(20, 16, 8, cpu) == 2
    assert default_pages(1000, 16, 4096, cpu) == 1
