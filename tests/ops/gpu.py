"""What tests of the GPU kernels share: where they run, and torch's way beside them, held to the same checks."""

from dataclasses import replace

import pytest
import torch

from modelwright.ops.backends import triton as gpu_kernels
from modelwright.ops.pages import Pages

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""On a CPU the kernels run under Triton's interpreter (see ``tests/conftest.py``)."""

needs_triton = pytest.mark.skipif(not gpu_kernels.available(), reason=f"no GPU kernels: {gpu_kernels.reason()}")
WAYS = [pytest.param(True, id="triton", marks=needs_triton), pytest.param(False, id="torch")]

CLOSE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 3e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}
"""Queries, keys, weights of the sums and results carry 24, 11 or 8 bits: errors of a few of their last, near 1."""


def moved(pages: Pages) -> Pages:
    """The same pages where the kernels run; views stay views."""
    return replace(pages, rows=pages.rows.to(DEVICE), scales=None if pages.scales is None else pages.scales.to(DEVICE))
