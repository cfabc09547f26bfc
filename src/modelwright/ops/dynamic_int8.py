"""Linear layers whose weights and activations are both int8, the activations rounded row by row as they come.

A row's scale is chosen so that its largest magnitude is 127 steps (LLM.int8(), arXiv:2208.07339, section 2.1, without
its outliers). Leaves out how weights are rounded (``weight_only.py``).
"""

import torch
from torch import Tensor

from modelwright.ops.weight_only import Int8Weight, quantise_int8


def dynamic_int8_linear(x: Tensor, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` through whole numbers: x ``[..., in]``, weight ``[out, in]`` -> ``[..., out]``.

    The sums of products are exact; scales and bias are applied in fp32, and the result is rounded to the type of ``x``.
    """
    rows = quantise_int8(x.reshape(-1, x.shape[-1]))
    sums = int8_product(rows.steps, weight.steps)  # [rows, out]
    out = sums.float() * rows.scales[:, None] * weight.scales
    out = out if bias is None else out + bias.float()
    return out.to(x.dtype).view(*x.shape[:-1], out.shape[-1])


def int8_product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.T`` of int8 ``[rows, in]`` and ``[out, in]``, int32 ``[rows, out]``, by torch's own kernel."""
    if not _kernel_serves(left, right):
        return wide_product(left, right)
    return torch._int_mm(left, right.t())  # pyright: ignore[reportPrivateImportUsage] (there is no public name)


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """The same in fp64, which holds every sum of up to 2^39 products. The documentation of :func:`int8_product`."""
    return (left.double() @ right.double().t()).to(torch.int32)


def _kernel_serves(left: Tensor, right: Tensor) -> bool:
    """On the CPU any but empty rows and rows of one number, which torch gets wrong; on CUDA whole 8s and 17 rows."""
    if left.device.type == "cuda":
        return len(left) > 16 and all(size % 8 == 0 for size in right.shape)
    return left.device.type == "cpu" and len(left) > 0 and left.shape[1] > 1
