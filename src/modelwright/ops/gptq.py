"""Rounding a weight to int4 so that its products stay near: GPTQ (Frantar et al., arXiv:2210.17323).

Columns are rounded one after the other, and what each is off is made up for by those that are still to come, as far as
the inputs that the layer meets let it. Leaves out where the inputs come from.
"""

import torch
from torch import Tensor

from modelwright.ops.weight_only import Int4Weight, int4_of, int4_parameters, rounded_to

DAMPING = 0.01
"""What is added to the diagonal of the Hessian, as a share of its mean: the paper's."""
COLUMNS = 128
"""Columns whose errors are spread over one another before they are over the rest; whole groups of them."""


def gptq(weight: Tensor, hessian: Tensor, group: int, offset: bool = True) -> Int4Weight:
    """Round ``[out, in]`` to groups as :func:`modelwright.ops.weight_only.quantise_int4` lays them out.

    Each group's scale and offset are those of its weights before anything is rounded, and columns go by the size of
    their inputs, the largest first.

    Args:
        hessian: fp32 ``[in, in]``, the sum of ``x x^T`` over the inputs x; inputs that are never other than 0 are
            rounded to nearest.

    Raises:
        ValueError: as ``quantise_int4``.
    """
    scales, offsets = int4_parameters(weight, group, offset)
    sizes = hessian.diagonal()
    order = sizes.argsort(descending=True, stable=True)
    factor = _factor(hessian, order)  # [in, in], upper
    left = weight.float()[:, order]
    steps = torch.empty(left.shape, dtype=torch.uint8, device=left.device)
    groups = (order // group).tolist()
    for first in range(0, len(order), COLUMNS):
        some = left[:, first : first + COLUMNS]
        last = first + some.shape[1]
        spread = factor[first:last, first:last]
        errors = torch.empty_like(some)
        for i in range(some.shape[1]):
            scale = scales[:, groups[first + i]]
            shift = None if offsets is None else offsets[:, groups[first + i]]
            steps[:, first + i], value = rounded_to(some[:, i], scale, shift)
            errors[:, i] = (some[:, i] - value) / spread[i, i]
            some[:, i + 1 :] -= errors[:, i, None] * spread[i, i + 1 :]
        left[:, last:] -= errors @ factor[first:last, last:]
    by_input = torch.empty_like(steps)
    by_input[:, order] = steps
    return int4_of(by_input, scales, offsets)


def _factor(hessian: Tensor, order: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse, inputs in that order; reckoned in fp64."""
    wide = hessian[order][:, order].double()
    diagonal = wide.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(wide))
    return torch.linalg.cholesky(inverse, upper=True).float()
