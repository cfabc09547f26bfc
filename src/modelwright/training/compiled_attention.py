"""Attention of packed documents as one operation of torch's, which a compiler calls and does not look into.

Where documents end differs from row to row, so that a graph of their attention would serve one row alone. Here it is a
tensor among the operation's inputs. What the operation kept for its gradient could not be given back, so the backward
pass computes it a second time. Importing this registers it.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from modelwright.attention.dense import DenseAttention
from modelwright.attention.packed import PackedAttention
from modelwright.ops.attention import attention, reference_attention
from modelwright.ops.documents import Spans, attention_by_document

_library = torch.library.Library("modelwright", "DEF")
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor bounds, Tensor? seed, float scale, float dropout, ScalarType? softmax"
_library.define(f"attention_by_document({_INPUTS}) -> Tensor")
_library.define(f"attention_by_document_backward(Tensor gradient, {_INPUTS}) -> (Tensor, Tensor, Tensor)")
ATTENTION: Any = torch.ops.modelwright.attention_by_document
"""The operation: q, k and v as in ``ops/attention.py``; ``bounds`` ``[documents + 1]`` on the CPU, where documents
begin and the last ends, counted over the rows; ``seed`` of dropout; the type of an explicit softmax, or None."""


def in_graph(packed: PackedAttention) -> Any:
    """The backend that a graph may hold in the place of ``packed``, which attends documents alone."""
    assert packed.spans is not None
    tokens = packed.spans[0][-1][1]
    ends = [row * tokens + stop for row, spans in enumerate(packed.spans) for _, stop in spans]
    bounds = torch.tensor([0, *ends])
    torch._dynamo.mark_dynamic(bounds, 0)
    softmax = packed.product.keywords["softmax_dtype"] if isinstance(packed.product, partial) else None
    made = DenseAttention()
    made.product = partial(_product, bounds, softmax)
    return made


def _product(
    bounds: Tensor,
    softmax: torch.dtype | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float = 0.0,
    causal: bool = True,
) -> Tensor:
    """See :func:`attention_by_document`; in the types that autocast would give torch's own attention."""
    if torch.is_autocast_enabled(q.device.type):
        q, k, v = (part.to(torch.get_autocast_dtype(q.device.type)) for part in (q, k, v))
    seed = torch.randint(2**62, ()) if dropout else None
    return ATTENTION(q, k, v, bounds, seed, scale, dropout, softmax)


def _spans(bounds: Tensor, tokens: int) -> Spans:
    rows: list[list[tuple[int, int]]] = []
    for start, stop in pairwise(bounds.tolist()):
        if start % tokens == 0:
            rows.append([])
        rows[-1].append((start % tokens, (stop - 1) % tokens + 1))
    return rows


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    seed: Tensor | None,
    scale: float,
    dropout: float,
    softmax: torch.dtype | None,
) -> Tensor:
    product: Callable[..., Tensor] = attention
    if softmax is not None:
        product = partial(reference_attention, softmax_dtype=softmax)
    with torch.random.fork_rng([q.device] if q.is_cuda else [], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(int(seed))
        return attention_by_document(product, _spans(bounds, q.shape[2]), q, k, v, None, scale, dropout).contiguous()


def _backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        q, k, v = (part.detach().requires_grad_() for part in (q, k, v))
        found = torch.autograd.grad(_forward(q, k, v, *others), (q, k, v), gradient)
    return tuple(part.contiguous() for part in found)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.settings = inputs[5:]


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    made = torch.ops.modelwright.attention_by_document_backward(gradient, *ctx.saved_tensors, *ctx.settings)
    return *made, None, None, None, None, None


def _shape(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _shapes(_: Tensor, *parts: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(part, memory_format=torch.contiguous_format) for part in parts[:3])


for _name, _computed, _described in (
    ("attention_by_document", _forward, _shape),
    ("attention_by_document_backward", _backward, _shapes),
):
    _library.impl(_name, _computed, "CompositeExplicitAutograd")
    torch.library.register_fake(f"modelwright::{_name}", _described)
torch.library.register_autograd("modelwright::attention_by_document", _gradients, setup_context=_keep)
