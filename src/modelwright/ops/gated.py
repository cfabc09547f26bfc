"""What a gated feed-forward (SwiGLU, arXiv:2002.05202) does between its projections, by torch and by the kernel."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.dispatch import only_numbers
from modelwright.ops.invariant import one_by_one, rows_are_invariant

Activation = Callable[[Tensor], Tensor]
"""``F.silu`` itself is what the kernels know; any other function, and any module, is called."""


def gated_product(gate: Tensor, up: Tensor, act: Activation) -> Tensor:
    """``act(gate) * up``, both ``[..., width]``."""
    known = act is F.silu and gate.dtype == up.dtype and gate.is_contiguous()
    if known and only_numbers(gate, up) and kernels.serves_rows(gate, up):
        return kernels.silu_product(gate, up)
    if rows_are_invariant():
        rows = (part.reshape(-1, part.shape[-1]) for part in (gate, up))
        return one_by_one(lambda a, b: act(a) * b, *rows).view(up.shape)
    return act(gate) * up
