"""The sigmoid approximation of GELU (arXiv:1606.08415, section 2), which ImageGPT was trained with."""

from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.dispatch import only_numbers


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 * x)`` of any shape, by the kernel in one pass and with one rounding, by torch in three."""
    if x.is_contiguous() and only_numbers(x) and kernels.serves_rows(x):
        return kernels.quick_gelu(x)
    return x * (1.702 * x).sigmoid()
