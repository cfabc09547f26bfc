"""Examples of operations whose gradients kernels give too: what they are given, results and gradients in one tensor."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.ops.attention import reference_attention
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.draws import Compute, Draw, Example
from modelwright.ops.experts import segmented_linear
from modelwright.ops.gated import gated_product


def _gated_back(d: Draw) -> tuple[Compute, Compute]:
    dim = d.one_of(512, 15, 33, 1408)
    parts = [d.tensor(9, dim, scale=scale) for scale in (5, 1, 1)]
    ours, wide = [d.here(part) for part in parts], [part.float() for part in parts]
    return (
        lambda: _with_gradients(lambda gate, up: gated_product(gate, up, F.silu), ours[:2], ours[2]),
        lambda: _with_gradients(lambda gate, up: F.silu(gate) * up, wide[:2], wide[2]),
    )


def _attended(d: Draw) -> tuple[Compute, Compute]:
    """Attention and the gradients of what it attends with."""
    tokens, heads, group = d.one_of(64, 1, 49, 130, 601), d.one_of(4, 2), d.one_of(1, 2)
    k_dim, v_dim, causal = d.one_of(64, 24, 96), d.one_of(64, 8, 40), bool(d.one_of(1, 0))
    shapes = (heads, k_dim), (heads // group, k_dim), (heads // group, v_dim), (heads, v_dim)
    q, k, v, gradient = (d.tensor(1, tokens, *shape).transpose(1, 2) for shape in shapes)
    own_q, own_k, own_v, of_out = (d.here(part) for part in (q, k, v, gradient))
    scale = k_dim**-0.5

    def exact() -> Tensor:
        wide = [part.float() for part in (q, k, v)]
        return _with_gradients(
            lambda q, k, v: reference_attention(q, k, v, None, scale, causal=causal), wide, gradient.float()
        )

    def compute() -> Tensor:
        if not kernels.serves_trained_attention(own_q, own_k, own_v, None, d.dtype):
            return exact()
        out, sums = kernels.attend(own_q, own_k, own_v, None, scale, causal)
        found = kernels.attend_backward(of_out, own_q, own_k, own_v, None, out, sums, scale, causal)
        return _joined(out, *found)

    return compute, exact


def _grouped(d: Draw) -> tuple[Compute, Compute]:
    """Products of runs of rows and their gradients."""
    rows, width, out = d.one_of(100, 7, 300), d.one_of(64, 24, 136), d.one_of(128, 40, 70)
    counts = torch.bincount(torch.randint(6, (rows,), generator=d.numbers), minlength=8)
    x, weight, gradient = d.tensor(rows, width), d.tensor(8, out, width, scale=width**-0.5), d.tensor(rows, out)
    own, matrices, of_y = (d.here(part) for part in (x, weight, gradient))

    def exact() -> Tensor:
        wide = [part.float() for part in (x, weight)]
        return _with_gradients(lambda rows, stack: segmented_linear(rows, stack, counts), wide, gradient.float())

    def compute() -> Tensor:
        if not kernels.serves_grouped(own, matrices):
            return exact()
        turned = matrices.transpose(1, 2)
        products = kernels.grouped_linear(own, matrices, counts), kernels.grouped_linear(of_y, turned, counts)
        return _joined(*products, kernels.grouped_weight_gradient(of_y, own, counts))

    return compute, exact


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def _with_gradients(function: Callable[..., Tensor], parts: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """What a function gives, and the gradients of its operands."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [part.clone().requires_grad_() for part in parts]
        out = function(*leaves)
        return _joined(out.detach(), *torch.autograd.grad(out, leaves, gradient.clone()))


TRAINED: Mapping[str, Example] = {
    "gated_product, trained": _gated_back,
    "trained_attention": _attended,
    "grouped_linear": _grouped,
}
"""By the operation's name in ``ops``."""
