"""Linear layers whose weight lies input by input, as GPT-2's do, by the compiled kernel where that is faster."""

from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.dispatch import only_numbers
from modelwright.ops.invariant import one_by_one, rows_are_invariant
from modelwright.ops.products import addmm


def input_major_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x @ weight + bias``: x ``[..., in]``, weight ``[in, out]``, bias ``[out]`` -> ``[..., out]``."""
    rows = x.numel() // x.shape[-1]
    if rows_are_invariant() and rows > 1:
        each = one_by_one(lambda row: input_major_linear(row, weight, bias), x.reshape(rows, x.shape[-1]))
        return each.view(*x.shape[:-1], weight.shape[-1])
    served = only_numbers(x, weight, bias) and kernels.serves_columns(x, weight, bias)
    if served and kernels.prefers_columns(rows, x.dtype):
        return kernels.columns(x, weight, bias)
    return addmm(bias, x.reshape(rows, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[-1])
