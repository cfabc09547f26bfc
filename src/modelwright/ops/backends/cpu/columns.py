"""Products with a weight that lies input by input, ``[in, out]``: the checks and the pointers for ``columns.cpp``."""

import torch
from torch import Tensor

from modelwright.ops.backends.cpu.build import available, call
from modelwright.ops.backends.cpu.layouts import COLUMNS, LINEAR_COLUMNS
from modelwright.ops.backends.cpu.linear import INPUTS
from modelwright.ops.backends.cpu.thresholds import INPUT_MAJOR_ROWS_BF16, INPUT_MAJOR_ROWS_FP32, LACKED_LINEAR_ROWS
from modelwright.ops.backends.cpu.unit import has_wide_registers, torch_lacks


def serves_columns(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel takes these: on the CPU, contiguous, of one type that it knows."""
    parts = [weight] if bias is None else [weight, bias]
    alike = all(part.dtype == x.dtype and part.device == x.device and part.is_contiguous() for part in parts)
    return x.is_cpu and x.dtype in INPUTS and alike and available()


def prefers_columns(rows: int, dtype: torch.dtype) -> bool:
    """Whether the kernel is faster than torch, or than a product in fp32, for so many rows."""
    if dtype == torch.bfloat16:
        return 0 < rows <= (LACKED_LINEAR_ROWS if torch_lacks(dtype) else INPUT_MAJOR_ROWS_BF16)
    return 0 < rows <= INPUT_MAJOR_ROWS_FP32 and has_wide_registers()


def columns(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight + bias``: x ``[..., in]``, weight ``[in, out]`` -> ``[..., out]``; sums are taken in fp32.

    Raises:
        ValueError: the widths differ.
    """
    if x.shape[-1] != weight.shape[0]:
        raise ValueError(f"x is {x.shape[-1]} wide and the weight takes {weight.shape[0]}")
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = x.new_empty(*x.shape[:-1], weight.shape[1])
    pointers = rows.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr()
    packed = COLUMNS.pack(*weight.shape, len(rows), *pointers)
    call(LINEAR_COLUMNS, packed, x.dtype == torch.bfloat16, torch.get_num_threads())
    return out
