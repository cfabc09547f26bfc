"""``x @ weight + bias`` for few rows: as torch multiplies, and with the weight laid out once so that it is read faster.

Decoding reads every weight for each token, so its speed is that of reading. oneDNN's blocked layout is read at close to
the memory's speed where ``addmm`` on the CPU reads at two thirds (fp32) or one third (bf16) of it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor, Tensor | None], Tensor]
"""``(x [rows, in], residual [rows, out] or None)`` to ``residual + x @ weight + bias [rows, out]``."""

_MANY_ROWS = 16
"""What oneDNN is told to lay out for: any number above 1 gives the blocked layout, which also serves one row best."""


def plain_product(weight: Tensor, bias: Tensor | None) -> Product:
    """The product with ``weight`` ``[in, out]`` as it lies. The documentation of :func:`packed_product`."""

    def product(x: Tensor, residual: Tensor | None) -> Tensor:
        out = x @ weight if bias is None else torch.addmm(bias, x, weight)
        return out if residual is None else residual + out

    return product


def packed_product(weight: Tensor, bias: Tensor | None) -> Product:
    """The product with a copy of ``weight`` ``[in, out]`` in oneDNN's layout; without oneDNN, with the weight itself.

    torch's own compiler packs weights in this way when it freezes a model; there is no public name for it.
    """
    if weight.device.type != "cpu":
        return plain_product(weight, bias)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous(), _MANY_ROWS)
        alone, added = torch.ops.mkldnn._linear_pointwise.default, torch.ops.mkldnn._linear_pointwise.binary
        alone(weight.new_zeros(1, weight.shape[0]), packed, bias, "none", [], "")
    except (AttributeError, RuntimeError):  # a build without oneDNN, or a type that this processor lacks
        return plain_product(weight, bias)

    def product(x: Tensor, residual: Tensor | None) -> Tensor:
        if residual is None:
            return alone(x, packed, bias, "none", [], "")
        return added(x, residual, packed, bias, "add")

    return product
