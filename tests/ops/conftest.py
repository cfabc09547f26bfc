"""What tests of operations share: a number of threads that is put back."""

from collections.abc import Callable, Iterator
from importlib import import_module

import pytest
import torch


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Three threads from here on, or as many as the test sets; afterwards as many as there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def set_vectors(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the rules those of a processor with vectors that torch calls so; what is computed is the same on any."""
    module = import_module("modelwright.ops.backends.cpu.unit")  # the package has a function of this name
    return lambda name: monkeypatch.setattr(module, "VECTORS", name)


@pytest.fixture
def wide_registers(set_vectors: Callable[[str], None]) -> None:
    """The rules of a processor whose registers hold the kernels' vectors."""
    set_vectors("AVX512")
