"""Expert feed-forward over routed tokens: the loop that documents it, and the grouped product that runs.

``x`` is ``[tokens, dim]``, ``chosen`` and ``weights`` are ``[tokens, top_k]``; expert weights are stacked: ``w_in``
``[experts, 2 * width, dim]`` (gate rows, then up rows) or ``[experts, width, dim]`` without a gate, ``w_out``
``[experts, dim, width]``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


def expert_hidden(projected: Tensor, act: Activation, gated: bool) -> Tensor:
    """``act(gate) * up``, or ``act(up)`` where there is no gate."""
    if not gated:
        return act(projected)
    gate, up = projected.chunk(2, dim=-1)
    return act(gate) * up


def looped_experts(
    x: Tensor, chosen: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor, act: Activation, gated: bool = True
) -> Tensor:
    """Every expert in turn on the tokens that chose it. The documentation of :func:`grouped_experts`."""
    result = torch.zeros_like(x)
    for expert in range(w_in.shape[0]):
        token, place = torch.where(chosen == expert)
        hidden = expert_hidden(F.linear(x[token], w_in[expert]), act, gated)
        output = F.linear(hidden, w_out[expert]) * weights[token, place, None].to(x.dtype)
        result = result.index_add(0, token, output.to(x.dtype))
    return result


def grouped_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    act: Activation,
    gated: bool = True,
    dropout: float = 0.0,
) -> Tensor:
    """Tokens sorted by expert, one grouped product each way, summed back per token.

    Serves one token as well as many: the grouped product touches only the experts that were chosen.
    """
    top_k = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)  # [tokens * top_k], by expert
    counts = torch.bincount(chosen.flatten(), minlength=w_in.shape[0])
    hidden = expert_hidden(grouped_linear(x[order // top_k], w_in, counts), act, gated)
    output = grouped_linear(F.dropout(hidden, dropout), w_out, counts)
    output = F.dropout(output, dropout) * weights.flatten()[order, None].to(output.dtype)
    in_place = torch.empty_like(output).index_copy(0, order, output)  # back to [tokens * top_k], by token
    return in_place.unflatten(0, (-1, top_k)).sum(dim=1).to(x.dtype)


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """``x[rows of e] @ weight[e].T`` for consecutive runs of rows: x ``[rows, in]``, weight ``[experts, out, in]``, counts ``[experts]``."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    if _grouped_mm_serves(x, weight):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0).to(torch.int32))
    return segmented_linear(x, weight, counts)


def segmented_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """The same product as one matrix product per expert that has rows; for shapes that torch's grouped kernel refuses."""
    sizes = counts.tolist()
    runs = x.split(sizes)
    return (
        torch.cat([F.linear(run, weight[e]) for e, run in enumerate(runs) if sizes[e]]) if len(x) else x @ weight[0].T
    )


def _grouped_mm_serves(x: Tensor, weight: Tensor) -> bool:
    """torch's grouped kernel wants rows of whole 16-byte units, and on CUDA bf16."""
    aligned = all(size * x.element_size() % 16 == 0 for size in weight.shape[1:])
    kind = x.dtype == torch.bfloat16 or x.device.type == "cpu"
    return aligned and kind and x.dtype == weight.dtype and len(x) > 0
