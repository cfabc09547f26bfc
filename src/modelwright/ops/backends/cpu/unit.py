"""What multiplies several rows of bf16 on this processor, and how much its registers hold."""

from functools import cache

import torch

from modelwright.ops.backends.cpu.build import ask, available
from modelwright.ops.backends.cpu.layouts import BEST_UNIT, Unit

VECTORS = torch.backends.cpu.get_cpu_capability()
"""What torch computes with here, as it calls it: read once, because its compiler cannot ask."""


@cache
def unit() -> Unit:
    """The best unit of this processor; asks the system's permission for it, once."""
    return Unit(ask(BEST_UNIT)) if available() else Unit.STREAMS


def torch_lacks(dtype: torch.dtype) -> bool:
    """Whether torch makes products of a type out of others here, and both a kernel and a product in fp32 are faster.

    So it is with bf16 on AVX2 (Zen 3, one core, 1 to 4096 rows): torch takes 1.3 to 3.4 times as long for a linear
    layer, 8 to 50 times with a weight ``[in, out]``, 3 to 4 for experts, 2 to 14 to absorb ``kv_b``. No kernel of ours
    serves fp16, of which torch takes 7 to 40 times as long as in fp32, as it does of bf16.
    """
    return dtype in (torch.bfloat16, torch.float16) and VECTORS == "AVX2"


def has_wide_registers() -> bool:
    """Whether a register holds the 16 floats of the kernels' vectors, as with AVX-512; else they take several."""
    return VECTORS.startswith("AVX512")
