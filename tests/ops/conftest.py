"""What tests of operations share: a number of threads that is put back."""

from collections.abc import Iterator

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
def wide_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of a processor whose registers hold the kernels' vectors; what is computed is the same on any."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
