"""What multiplies several rows of bf16 on this processor, and how much its registers hold."""

from functools import cache

import torch

from modelwright.ops.backends.cpu.build import ask, available
from modelwright.ops.backends.cpu.layouts import BEST_UNIT, Unit


@cache
def unit() -> Unit:
    """The best unit of this processor; asks the system's permission for it, once."""
    return Unit(ask(BEST_UNIT)) if available() else Unit.STREAMS


def has_wide_registers() -> bool:
    """Whether a register holds the 16 floats of the kernels' vectors, as with AVX-512; else they take several."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")
