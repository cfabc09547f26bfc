"""Caches that no machine holds are refused before anything is allocated."""

from typing import Any

import pytest

from modelwright.configs.limits import LARGEST_COUNT
from modelwright.engine.engine import Engine
from modelwright.engine.engine_config import EngineConfig
from modelwright.errors import ConfigError
from tests.llamas import tiny_llama


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (
            {"num_pages": LARGEST_COUNT},
            rf"^num_pages \({LARGEST_COUNT}\) of page_size \(16\) take .* GiB, and ",
        ),
        ({"page_size": 2**20, "num_pages": 2**20}, r"^num_pages \(1048576\) of page_size \(1048576\) take "),
        ({"host_pages": LARGEST_COUNT}, r"^host_pages \(2147483647\) of page_size \(16\) take "),
    ],
)
def test_pages_beyond_the_memory_are_refused(limits, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Engine(tiny_llama(), EngineConfig(**limits))


@pytest.mark.parametrize("name", ["num_pages", "host_pages", "token_budget", "max_context"])
def test_counts_beyond_32_bits_are_refused(name):
    limits: dict[str, Any] = {name: 10**11}
    with pytest.raises(ConfigError, match=rf"^{name} must be at most {LARGEST_COUNT}, got {10**11}$"):
        EngineConfig(**limits)
