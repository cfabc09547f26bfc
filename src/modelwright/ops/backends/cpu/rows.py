"""What is done row by row by the compiled kernels: the checks and the pointers; the arithmetic is in C++."""

import torch
from torch import Tensor

from modelwright.ops.backends.cpu.build import available, call
from modelwright.ops.backends.cpu.layouts import (
    NORM_ROWS,
    PLACE_ROWS,
    QUICK_GELU,
    ROTATE_ROWS,
    ROUTE_ROWS,
    SILU_PRODUCT,
    SILU_PRODUCT_BACK,
)

TYPES = (torch.float32, torch.bfloat16)
HALF = torch.bfloat16


def serves_rows(x: Tensor, *others: Tensor) -> bool:
    """Whether the kernels take ``x`` and what goes with it: on the CPU, of types they know."""
    known = x.is_cpu and x.dtype in TYPES and x.stride(-1) == 1
    return known and all(other.device == x.device and other.is_contiguous() for other in others) and available()


def rms_norm(x: Tensor, weight: Tensor, eps: float, once: bool) -> Tensor:
    """``weight * x / rms(x)`` over the last dimension, in fp32; see :class:`modelwright.layers.RMSNorm`.

    ``once`` rounds the result alone, otherwise the quotient is rounded to the type of ``x`` before. ``weight``
    ``[dim]`` has that type too.
    """
    x = x.contiguous()
    out, dim = torch.empty_like(x), x.shape[-1]
    call(
        NORM_ROWS,
        x.dtype == HALF,
        x.data_ptr(),
        x.numel() // dim,
        dim,
        weight.data_ptr(),
        eps,
        once,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def serves_placing(rows: Tensor, slots: Tensor, values: Tensor) -> bool:
    """Whether the kernel copies ``values`` to ``rows``: on the CPU, of one type, numbers of a vector side by side."""
    vectors = rows.is_cpu and values.is_cpu and rows.dtype == values.dtype and values.dim() in (2, 3)
    side_by_side = rows.stride(-1) == values.stride(-1) == 1 and slots.is_contiguous()
    return vectors and side_by_side and slots.dtype == torch.int64 and available()


def place(rows: Tensor, slots: Tensor, values: Tensor) -> None:
    """Copy ``values`` ``[tokens, ..., width]`` to the ``slots`` ``[tokens]`` of ``rows`` ``[places, ..., width]``."""
    size, width = rows.element_size(), rows.shape[-1]
    token, *head = (stride * size for stride in rows.stride()[:-1])
    x_token, *x_head = (stride * size for stride in values.stride()[:-1])
    heads = values.shape[1] if head else 1
    x, to = values.data_ptr(), rows.data_ptr()
    call(
        PLACE_ROWS,
        x,
        x_token,
        *(x_head or [0]),
        slots.data_ptr(),
        len(slots),
        heads,
        width * size,
        to,
        token,
        *(head or [0]),
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """:func:`modelwright.ops.rotary.rotate_half_split` or ``rotate_interleaved``.

    x ``[batch, heads, tokens, dim]``, cos and sin ``[batch or 1, tokens, dim / 2]``, both in fp32 or both in bf16; the
    result is a view of memory in the order of tokens, as pages keep keys.
    """
    batch, heads, tokens, dim = x.shape
    row_stride, head_stride, token_stride, _ = x.stride()
    out = x.new_empty(batch, tokens, heads, dim)
    size, table = x.element_size(), 0 if cos.shape[0] == 1 else cos.stride(0) * cos.element_size()
    for row in range(batch):
        call(
            ROTATE_ROWS,
            x.dtype == HALF,
            cos.dtype == HALF,
            x.data_ptr() + row * row_stride * size,
            head_stride,
            token_stride,
            heads,
            tokens,
            dim,
            cos.data_ptr() + row * table,
            sin.data_ptr() + row * table,
            interleaved,
            out.data_ptr() + row * tokens * heads * dim * size,
            torch.get_num_threads(),
        )
    return out.transpose(1, 2)


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """``F.silu(gate) * up`` of one type and shape: both contiguous, or halves of rows ``[rows, width]``."""
    out = gate.new_empty(gate.shape)
    pointers = gate.data_ptr(), up.data_ptr()
    call(SILU_PRODUCT, gate.dtype == HALF, *pointers, *_rows(gate), out.data_ptr(), torch.get_num_threads())
    return out


def silu_product_back(gradient: Tensor, gate: Tensor, up: Tensor, of_gate: Tensor, of_up: Tensor) -> None:
    """Write the gradients of ``gate`` and ``up`` by that of :func:`silu_product`, which is contiguous."""
    pointers = gradient.data_ptr(), gate.data_ptr(), up.data_ptr()
    to = of_gate.data_ptr(), of_up.data_ptr(), _rows(of_gate)[2]
    call(SILU_PRODUCT_BACK, gate.dtype == HALF, *pointers, *_rows(gate), *to, torch.get_num_threads())


def _rows(x: Tensor) -> tuple[int, int, int]:
    """How many rows, their width, and the numbers from one to the next."""
    if x.is_contiguous():
        return 1, x.numel(), x.numel()
    rows, width = x.shape
    return rows, width, x.stride(0)


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 * x)``, contiguous, rounded once."""
    out = torch.empty_like(x)
    call(QUICK_GELU, x.dtype == HALF, x.data_ptr(), x.numel(), out.data_ptr(), torch.get_num_threads())
    return out


def route(x: Tensor, weight: Tensor, softmax: bool) -> tuple[Tensor, Tensor]:
    """Logits ``x @ weight.T``, summed in fp32, and their softmax or sigmoid: both fp32 ``[tokens, experts]``.

    x ``[tokens, dim]`` and weight ``[experts, dim]`` are contiguous, each in fp32 or bf16; see
    :class:`modelwright.layers.Router`.
    """
    (tokens, dim), experts = x.shape, weight.shape[0]
    logits, scores = x.new_empty(2, tokens, experts, dtype=torch.float32).unbind()
    call(
        ROUTE_ROWS,
        x.dtype == HALF,
        weight.dtype == HALF,
        x.data_ptr(),
        tokens,
        dim,
        weight.data_ptr(),
        experts,
        softmax,
        logits.data_ptr(),
        scores.data_ptr(),
        torch.get_num_threads(),
    )
    return logits, scores
