"""Which tensors the GPU kernels take: where they lie, their types, and whether the kernels are right on that device."""

from torch import Tensor

from modelwright.ops.backends.triton.attention import QUERIES, STORED
from modelwright.ops.backends.triton.experts import TYPES
from modelwright.ops.backends.triton.load import runs_on
from modelwright.ops.backends.triton.self_check import attention_failure, experts_failure
from modelwright.ops.pages import Pages


def serves_attention(q: Tensor, *pages: Pages) -> bool:
    """Whether the kernels take these queries over these pages: on a GPU where they are right, of types they know."""
    known = q.dtype in QUERIES and all(kind.rows.dtype in STORED for kind in pages)
    return known and runs_on(q, *(kind.rows for kind in pages)) and not attention_failure(q.device, q.dtype)


def serves_experts(x: Tensor, w_in: Tensor, w_out: Tensor) -> bool:
    """Whether the kernels take ``x`` and these stacks: on a GPU where they are right, of one type they know."""
    known = x.dtype == w_in.dtype == w_out.dtype and x.dtype in TYPES and w_in.stride(-1) == w_out.stride(-1) == 1
    return known and runs_on(x, w_in, w_out) and not experts_failure(x.device, x.dtype)
