"""Expert feed-forward over routed tokens: the loop that documents it, the grouped product, and which kernel runs.

``x`` is ``[tokens, dim]``, ``chosen`` and ``weights`` are ``[tokens, top_k]``; expert weights are stacked: ``w_in``
``[experts, 2 * width, dim]`` (gate rows, then up rows) or ``[experts, width, dim]`` without a gate, ``w_out``
``[experts, dim, width]``. The weighted sum over a token's experts is taken in the routing weights' precision (fp32).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends import triton as gpu_kernels
from modelwright.ops.backends.cpu import Unit
from modelwright.ops.backends.cpu.thresholds import GROUPED_ROWS, LACKED_ROWS_OF_AN_EXPERT, ROWS_OF_AN_EXPERT
from modelwright.ops.dispatch import graph_is_made, only_numbers
from modelwright.ops.gated import Activation, gated_halves
from modelwright.ops.invariant import one_by_one, rows_are_invariant
from modelwright.ops.products import are_numbers, in_fp32, plain_linear

GroupedProduct = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``grouped_linear`` or ``segmented_linear``: one signature, one result."""


def prefers_expert_kernel(choices: int, experts: int, dtype: torch.dtype) -> bool:
    """The rule on the CPU: whether ``choices`` leave few rows for each expert, or the kernel is faster however many."""
    in_blocks = dtype == torch.bfloat16 and kernels.unit() != Unit.STREAMS
    most = LACKED_ROWS_OF_AN_EXPERT if kernels.torch_lacks(dtype) else ROWS_OF_AN_EXPERT
    return in_blocks or choices <= experts * most


def experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    act: Activation,
    gated: bool = True,
    dropout: float = 0.0,
    product: GroupedProduct | None = None,
) -> Tensor:
    """The weighted sum of each token's chosen experts, by a kernel where one serves: a gate, ``F.silu``, no dropout.

    Otherwise, and where a ``product`` is asked for, :func:`grouped_experts` with the same arguments.
    """
    known = product is None and gated and act is F.silu and not dropout
    if rows_are_invariant():
        if known and only_numbers(x, chosen, weights, w_in, w_out) and kernels.serves_experts(x, w_in, w_out):
            return kernels.experts(x, chosen, weights, w_in, w_out, Unit.STREAMS)
        each = partial(_in_segments, w_in=w_in, w_out=w_out, act=act, gated=gated, dropout=dropout, product=product)
        return one_by_one(each, x, chosen, weights)
    if known and only_numbers(x, chosen, weights, w_in, w_out):
        if kernels.serves_experts(x, w_in, w_out) and prefers_expert_kernel(chosen.numel(), len(w_in), x.dtype):
            return kernels.experts(x, chosen, weights, w_in, w_out)
        if gpu_kernels.serves_experts(x, w_in, w_out):
            return gpu_kernels.experts(x, chosen, weights, w_in, w_out)
    return grouped_experts(x, chosen, weights, w_in, w_out, act, gated, dropout, product)


def _in_segments(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    act: Activation,
    gated: bool,
    dropout: float,
    product: GroupedProduct | None,
) -> Tensor:
    """:func:`grouped_experts` with one product for each expert."""
    return grouped_experts(x, chosen, weights, w_in, w_out, act, gated, dropout, product or segmented_linear)


def expert_hidden(projected: Tensor, act: Activation, gated: bool) -> Tensor:
    """``act(gate) * up``, or ``act(up)`` where there is no gate."""
    if not gated:
        return act(projected)
    return gated_halves(projected, act)


def looped_experts(
    x: Tensor, chosen: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor, act: Activation, gated: bool = True
) -> Tensor:
    """Every expert in turn on the tokens that chose it. The documentation of :func:`grouped_experts`."""
    result = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, weights.dtype), device=x.device)
    for expert in range(w_in.shape[0]):
        token, place = torch.where(chosen == expert)
        hidden = expert_hidden(F.linear(x[token], w_in[expert]), act, gated)
        output = F.linear(hidden, w_out[expert]) * weights[token, place, None]
        result = result.index_add(0, token, output.to(result.dtype))
    return result.to(x.dtype)


def grouped_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    act: Activation,
    gated: bool = True,
    dropout: float = 0.0,
    product: GroupedProduct | None = None,
) -> Tensor:
    """Tokens sorted by expert, one grouped product each way, summed back per token.

    Serves one token as well as many: the grouped product touches only the experts that were chosen. ``dropout`` falls
    on the hidden units and on each expert's output. ``product`` stands for :func:`grouped_linear` where given.
    """
    product = product or grouped_linear
    top_k = chosen.shape[1]
    choices = chosen.flatten()  # [tokens * top_k], by token
    order = choices.argsort(stable=True)  # the same choices, by expert
    counts = choices.new_zeros(w_in.shape[0]).scatter_add(0, choices, torch.ones_like(choices))
    hidden = expert_hidden(product(x[order // top_k], w_in, counts), act, gated)
    output = F.dropout(product(F.dropout(hidden, dropout), w_out, counts), dropout)
    by_token = torch.empty_like(output).index_copy(0, order, output).unflatten(0, chosen.shape)
    return (by_token * weights[..., None]).sum(dim=1).to(x.dtype)


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """``x[rows of e] @ weight[e].T`` for consecutive runs of rows.

    x ``[rows, in]``, weight ``[experts, out, in]``, counts ``[experts]`` (how long each run is) -> ``[rows, out]``.
    Under autocast it runs in autocast's type, as a linear layer would.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    if in_fp32(x, weight) or (x.is_cpu and are_numbers(x, weight) and _by_kernel(x, weight)):
        return opaque_grouped_linear(x, weight, counts)
    if graph_is_made(x) and x.dtype != torch.bfloat16:  # torch's rules for graphs know its kernel in bf16 alone
        return opaque_grouped_linear(x, weight, counts)
    if graph_is_made(x) and not _grouped_mm_serves(x, weight):
        return opaque_grouped_linear(x, weight, counts)
    return _torchs_grouped(x, weight, counts)


def _torchs_grouped(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    if not _grouped_mm_serves(x, weight):
        return segmented_linear(x, weight, counts)
    ends = counts.cumsum(0).to(torch.int32)
    product = F.grouped_mm(x.contiguous(), weight.transpose(1, 2), offs=ends)
    if product.requires_grad:
        product.register_hook(Tensor.contiguous)  # the kernel's backward refuses expanded gradients, such as sum()'s
    return product


def segmented_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """:func:`grouped_linear` as one product per expert that has rows, for what torch's grouped kernel refuses."""
    sizes = counts.tolist()
    experts = weight.unbind(0)  # once: indexing the stack per expert would give each its own full-size gradient
    runs = [plain_linear(run, experts[e]) for e, run in enumerate(x.split(sizes)) if sizes[e]]
    return torch.cat(runs) if runs else plain_linear(x, experts[0])


@torch.library.custom_op("modelwright::grouped_linear", mutates_args=())
def opaque_grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """:func:`grouped_linear` as one step of a graph, which cannot hold what depends on how long each run is.

    Of types that this processor has no products of, it is made expert by expert in fp32 (``products.py``).
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        if not _lacked(x):
            return (
                kernels.grouped_linear(x, weight, counts)
                if _by_kernel(x, weight)
                else _torchs_grouped(x, weight, counts)
            )
        out = x.new_empty(x.shape[0], weight.shape[1], dtype=torch.float32)
        for run, into, own in zip(*_runs(counts, x.float(), out), weight, strict=True):
            if len(run):
                torch.mm(run, own.float().t(), out=into)
        return out.to(x.dtype)


@torch.library.custom_op("modelwright::grouped_linear_of_weight", mutates_args=())
def _weight_gradient(gradient: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    """``gradient[rows of e].T @ x[rows of e]`` for each expert: ``[experts, out, in]``."""
    if not _lacked(x) and kernels.serves_grouped_gradient(gradient, x):
        return kernels.grouped_weight_gradient(gradient, x, counts)
    if not _lacked(x):
        return torch.stack([of_run.T @ run for of_run, run in zip(*_runs(counts, gradient, x), strict=True)])
    out = x.new_empty(counts.shape[0], gradient.shape[1], x.shape[1])
    room = x.new_empty(gradient.shape[1], x.shape[1], dtype=torch.float32)
    with torch.autocast("cpu", enabled=False):
        for own, of_run, run in zip(out, *_runs(counts, gradient.float(), x.float()), strict=True):
            own.copy_(torch.mm(of_run.T, run, out=room))
    return out


def _lacked(x: Tensor) -> bool:
    return x.is_cpu and kernels.torch_lacks(x.dtype)


def _by_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel multiplies these, and is faster."""
    return kernels.serves_grouped(x, weight) and x.shape[0] <= GROUPED_ROWS * weight.shape[0]


def _runs(counts: Tensor, *rows: Tensor) -> list[tuple[Tensor, ...]]:
    sizes = counts.tolist()
    return [each.split(sizes) for each in rows]


@opaque_grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_weight_gradient.register_fake
def _(gradient: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    return gradient.new_empty(counts.shape[0], gradient.shape[1], x.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, counts = ctx.saved_tensors
    wanted, of_weight, _ = ctx.needs_input_grad
    gradient, turned = gradient.contiguous(), weight.transpose(1, 2)
    if wanted and not (_lacked(x) or _by_kernel(gradient, turned)):
        turned = turned.contiguous()  # as the grouped kernel wants it
    back = opaque_grouped_linear(gradient, turned, counts) if wanted else None
    return back, _weight_gradient(gradient, x, counts) if of_weight else None, None


opaque_grouped_linear.register_autograd(_backward, setup_context=_keep)


def _backward_of_weight(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    of_y, x, counts = ctx.saved_tensors
    return opaque_grouped_linear(x, gradient, counts), opaque_grouped_linear(of_y, gradient.mT, counts), None


_weight_gradient.register_autograd(_backward_of_weight, setup_context=_keep)


def _grouped_mm_serves(x: Tensor, weight: Tensor) -> bool:
    """torch's grouped kernel wants rows of whole 16-byte units, on CUDA bf16 and on CPU at most fp32."""
    kinds = {"cuda": {torch.bfloat16}, "cpu": {torch.bfloat16, torch.float16, torch.float32}}
    kind = x.dtype == weight.dtype and x.dtype in kinds.get(x.device.type, ())
    return kind and x.shape[0] > 0 and all(size * x.element_size() % 16 == 0 for size in weight.shape[1:])
