"""An example of each operation that a kernel may compute: random tensors, the operation on them, and the reference.

An example is given a :class:`Draw` and returns two functions: the operation, on the draw's device and in its type, and
the reference, on the CPU and in fp32, from the same numbers.
"""

from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.ops.attention import attention, reference_attention
from modelwright.ops.draws import Compute, Draw, Example
from modelwright.ops.experts import experts, looped_experts
from modelwright.ops.gated import gated_product
from modelwright.ops.input_major import input_major_linear
from modelwright.ops.latent import latent_to_values, query_to_latent
from modelwright.ops.linear import linear
from modelwright.ops.norm import reference_rms_norm, rms_norm
from modelwright.ops.page_writes import write_pages
from modelwright.ops.paged import (
    continued_attention,
    continued_latent_attention,
    decode_attention,
    decode_latent_attention,
    paged_attention,
    paged_latent_attention,
)
from modelwright.ops.pages import Pages, dequantise_rows, quantise_rows
from modelwright.ops.quick_gelu import quick_gelu
from modelwright.ops.rotary import inverse_frequencies, rope_table, rotate, rotate_half_split, rotate_interleaved
from modelwright.ops.routing import reference_router_scores, router_scores
from modelwright.ops.stored import Stored, stored_experts, stored_linear
from modelwright.ops.trained_examples import TRAINED
from modelwright.ops.weight_only import Int8Weight, dequantise, quantise_int4, quantise_int8

PAGE = 16


def _linear(d: Draw) -> tuple[Compute, Compute]:
    rows, out, width = d.one_of(1, 3, 8, 17, 33, 64), d.one_of(96, 1, 100, 515), d.one_of(256, 72, 129, 1100)
    x, weight, bias = d.tensor(rows, width), d.tensor(out, width, scale=width**-0.5), d.tensor(out)
    ours = [d.here(part) for part in (x, weight, bias)]
    return lambda: linear(*ours), lambda: F.linear(x.float(), weight.float(), bias.float())


def _stored(d: Draw, *shape: int) -> dict[str, Stored]:
    weight = d.tensor(*shape, scale=shape[-1] ** -0.5)
    group, offset = d.one_of(32, 64, 128), bool(d.one_of(1, 0))
    return {"int8": quantise_int8(weight), "int4": quantise_int4(weight, group, offset)}


def _moved(d: Draw, weight: Stored) -> Stored:
    if isinstance(weight, Int8Weight):
        return Int8Weight(d.here(weight.steps), d.here(weight.scales))
    offsets = None if weight.offsets is None else d.here(weight.offsets)
    return type(weight)(d.here(weight.steps), d.here(weight.scales), offsets)


def _stored_linear(kind: str, d: Draw) -> tuple[Compute, Compute]:
    rows, out, width = d.one_of(1, 5, 8, 9, 17, 70), d.one_of(96, 1, 300), d.one_of(256, 128, 640)
    x, weight = d.tensor(rows, width), _stored(d, out, width)[kind]
    ours = d.here(x), _moved(d, weight)
    return lambda: stored_linear(*ours), lambda: F.linear(x.float(), dequantise(weight))


def _experts(d: Draw) -> tuple[Compute, Compute]:
    tokens, width, dim = d.one_of(1, 2, 9, 40), d.one_of(64, 24, 136), d.one_of(128, 40, 72)
    w_in, w_out = d.tensor(6, 2 * width, dim, scale=dim**-0.5), d.tensor(6, dim, width, scale=width**-0.5)
    x, (chosen, weights) = d.tensor(tokens, dim), d.choices(tokens, 6, d.one_of(2, 1, 4))
    ours = [d.here(part) for part in (x, chosen, weights, w_in, w_out)]
    wide = x.float(), chosen, weights, w_in.float(), w_out.float()
    return lambda: experts(*ours, act=F.silu), lambda: looped_experts(*wide, F.silu)


def _stored_experts(kind: str, d: Draw) -> tuple[Compute, Compute]:
    tokens, width, dim = d.one_of(1, 2, 8), d.one_of(128, 256), 128
    w_in, w_out = _stored(d, 6, 2 * width, dim)[kind], _stored(d, 6, dim, width)[kind]
    x, (chosen, weights) = d.tensor(tokens, dim), d.choices(tokens, 6, d.one_of(2, 1, 4))
    ours = d.here(x), d.here(chosen), d.here(weights), _moved(d, w_in), _moved(d, w_out)
    wide = x.float(), chosen, weights, dequantise(w_in), dequantise(w_out)
    return lambda: stored_experts(*ours, F.silu), lambda: looped_experts(*wide, F.silu)


def _norm(d: Draw) -> tuple[Compute, Compute]:
    rows, dim, fused = d.one_of(1, 5, 70), d.one_of(256, 1, 15, 1024), bool(d.one_of(0, 1))
    x, weight = d.tensor(1, rows, dim, scale=3), d.tensor(dim)
    ours = d.here(x), d.here(weight)
    return lambda: rms_norm(*ours, 1e-5, fused), lambda: reference_rms_norm(x.float(), weight.float(), 1e-5, fused)


def _rotate(d: Draw) -> tuple[Compute, Compute]:
    tokens, heads, dim = d.one_of(1, 7, 40), d.one_of(4, 1, 5), d.one_of(64, 2, 6)
    by = (rotate_half_split, rotate_interleaved)[d.one_of(0, 1)]
    x, positions = d.tensor(1, tokens, heads, dim).transpose(1, 2), torch.arange(tokens)[None] + d.one_of(100, 0, 5000)
    cos, sin = rope_table(positions, inverse_frequencies(dim, 10000.0))
    ours = [d.here(part) for part in (x, cos, sin)]
    return lambda: rotate(*ours, by=by), lambda: by(x.float(), cos, sin)


def _gated(d: Draw) -> tuple[Compute, Compute]:
    rows, dim = d.one_of(1, 4, 9), d.one_of(512, 15, 33, 1408)
    gate, up = d.tensor(rows, dim, scale=5), d.tensor(rows, dim)
    ours = d.here(gate), d.here(up)
    return lambda: gated_product(*ours, F.silu), lambda: F.silu(gate.float()) * up.float()


def _scores(d: Draw) -> tuple[Compute, Compute]:
    tokens, experts, dim = d.one_of(1, 4, 70), d.one_of(32, 3, 7), d.one_of(256, 3, 40)
    scoring = ("softmax", "sigmoid")[d.one_of(0, 1)]
    x, weight = d.tensor(tokens, dim), d.tensor(experts, dim, scale=dim**-0.5)
    ours, wide = (d.here(x), d.here(weight)), (x.float(), weight.float())
    return (
        lambda: router_scores(*ours, scoring, torch.float32)[1],
        lambda: reference_router_scores(*wide, scoring, torch.float32)[1],
    )


def _latent_in(d: Draw) -> tuple[Compute, Compute]:
    heads, tokens, nope, rank = d.one_of(4, 1), d.one_of(1, 5, 8, 32, 43), d.one_of(64, 32, 5), d.one_of(96, 512, 33)
    kv_b, q = d.tensor(heads * (nope + 32), rank, scale=rank**-0.5), d.tensor(1, tokens, heads, nope).transpose(1, 2)
    ours, keys = (d.here(q), d.here(kv_b)), kv_b.float().unflatten(0, (heads, -1))[:, :nope]
    return lambda: query_to_latent(*ours), lambda: torch.einsum("bhtn,hnr->bhtr", q.float(), keys)


def _latent_out(d: Draw) -> tuple[Compute, Compute]:
    heads, tokens, v_dim, rank = d.one_of(4, 1), d.one_of(1, 5, 8, 32, 43), d.one_of(64, 32, 7), d.one_of(96, 512, 33)
    kv_b, x = d.tensor(heads * (32 + v_dim), rank, scale=rank**-0.5), d.tensor(1, heads, tokens, rank)
    ours, values = (d.here(x), d.here(kv_b)), kv_b.float().unflatten(0, (heads, -1))[:, 32:]
    return lambda: latent_to_values(*ours, 32), lambda: torch.einsum("bhtr,hvr->bhtv", x.float(), values)


def _prompt(causal: bool, d: Draw) -> tuple[Compute, Compute]:
    tokens, heads, group = d.one_of(64, 16, 49, 130), d.one_of(4, 2), d.one_of(1, 2)
    k_dim, v_dim = d.one_of(64, 24, 96), d.one_of(64, 8, 40)
    shapes = (heads, k_dim), (heads // group, k_dim), (heads // group, v_dim)
    q, k, v = (d.tensor(1, tokens, *shape).transpose(1, 2) for shape in shapes)
    ours, scale = [d.here(part) for part in (q, k, v)], k_dim**-0.5
    return (
        lambda: attention(*ours, mask=None, scale=scale, causal=causal),
        lambda: reference_attention(q.float(), k.float(), v.float(), None, scale, causal=causal),
    )


@dataclass(frozen=True)
class _Pool:
    """Pages as they are stored on the draw's device, and on the CPU in fp32 what they stand for."""

    ours: Pages
    wide: Pages

    @classmethod
    def of(cls, d: Draw, pages: int, *shape: int) -> Self:
        rows, stored = d.tensor(pages, PAGE, *shape), d.one_of(0, 1)
        if not stored:
            return cls(Pages(d.here(rows)), Pages(rows.float()))
        steps, scales = quantise_rows(rows)
        return cls(Pages(d.here(steps), d.here(scales)), Pages(dequantise_rows(steps, scales, torch.float32)))


def _tables(d: Draw) -> tuple[list[int], Tensor, int]:
    """Contexts of some sequences, their scattered pages, and how many of those there are."""
    contexts = [d.one_of(200, 1, 33, 128, 700) for _ in range(d.one_of(2, 1, 5))]
    most = -(-max(contexts) // PAGE)
    order = torch.randperm(most * len(contexts), generator=d.numbers)
    return contexts, order.view(len(contexts), most).int(), order.numel()


def _decode(d: Draw) -> tuple[Compute, Compute]:
    (contexts, tables, pages), kv_heads, group = _tables(d), d.one_of(2, 1, 3), d.one_of(4, 1, 7)
    k_dim, v_dim = d.one_of(64, 32, 20), d.one_of(64, 32, 12)
    keys, values = _Pool.of(d, pages, kv_heads, k_dim), _Pool.of(d, pages, kv_heads, v_dim)
    q, scale = d.tensor(len(contexts), kv_heads * group, k_dim), k_dim**-0.5
    where = d.here(torch.tensor(contexts)), d.here(tables)
    starts = range(len(contexts) + 1)
    return (
        partial(decode_attention, d.here(q), keys.ours, values.ours, *where, scale),
        lambda: paged_attention(q.float(), keys.wide, values.wide, starts, contexts, tables, scale),
    )


def _latent_decode(d: Draw) -> tuple[Compute, Compute]:
    (contexts, tables, pages), heads = _tables(d), d.one_of(16, 1, 5)
    rank, rope = d.one_of(512, 64, 20), d.one_of(64, 32, 6)
    latent, k_rope = _Pool.of(d, pages, rank), _Pool.of(d, pages, rope)
    inner, rotated = d.tensor(len(contexts), heads, rank), d.tensor(len(contexts), heads, rope)
    where, scale = (d.here(torch.tensor(contexts)), d.here(tables)), (rank + rope) ** -0.5
    wide = inner.float(), rotated.float(), latent.wide, k_rope.wide, range(len(contexts) + 1)
    return (
        partial(decode_latent_attention, d.here(inner), d.here(rotated), latent.ours, k_rope.ours, *where, scale),
        lambda: paged_latent_attention(*wide, contexts, tables, scale),
    )


def _continued(d: Draw) -> tuple[Compute, Compute]:
    (contexts, tables, pages), kv_heads, group = _tables(d), d.one_of(2, 1), d.one_of(2, 3)
    context, dim, scale = contexts[0], d.one_of(64, 40), 0.1
    tokens = min(context, d.one_of(40, 1, 17))
    keys, values = _Pool.of(d, pages, kv_heads, dim), _Pool.of(d, pages, kv_heads, dim)
    q = d.tensor(1, kv_heads * group, tokens, dim)
    where = [0, tokens], [context], tables[:1]
    return (
        lambda: continued_attention(d.here(q), keys.ours, values.ours, context, d.here(tables[0]), scale),
        lambda: paged_attention(q[0].float().transpose(0, 1), keys.wide, values.wide, *where, scale).transpose(0, 1)[
            None
        ],
    )


def _latent_continued(d: Draw) -> tuple[Compute, Compute]:
    (contexts, tables, pages), heads = _tables(d), d.one_of(4, 1)
    rank, rope, nope, v_dim = d.one_of(64, 96), d.one_of(32, 12), 16, 24
    context, scale = contexts[0], 0.1
    tokens = min(context, d.one_of(20, 1, 33))
    latent, k_rope = _Pool.of(d, pages, rank), _Pool.of(d, pages, rope)
    q_nope, q_rope = d.tensor(1, heads, tokens, nope), d.tensor(1, heads, tokens, rope)
    kv_b = d.tensor(heads * (nope + v_dim), rank, scale=rank**-0.5)
    per_head = kv_b.float().unflatten(0, (heads, -1))

    def exact() -> Tensor:
        inner = torch.einsum("htn,hnr->thr", q_nope[0].float(), per_head[:, :nope])
        rotated = q_rope[0].float().transpose(0, 1)
        where = [0, tokens], [context], tables[:1]
        attended = paged_latent_attention(inner, rotated, latent.wide, k_rope.wide, *where, scale)
        return torch.einsum("thr,hvr->htv", attended, per_head[:, nope:])[None]

    ours = d.here(q_nope), d.here(q_rope), latent.ours, k_rope.ours, context, d.here(tables[0]), d.here(kv_b), scale
    return lambda: continued_latent_attention(*ours), exact


def _input_major(d: Draw) -> tuple[Compute, Compute]:
    rows, out, width = d.one_of(2, 1, 9, 40), d.one_of(96, 1, 100, 515), d.one_of(256, 72, 129)
    x, weight, bias = d.tensor(rows, width), d.tensor(width, out, scale=width**-0.5), d.tensor(out)
    ours = [d.here(part) for part in (x, weight, bias)]
    return lambda: input_major_linear(*ours), lambda: x.float() @ weight.float() + bias.float()


def _quick_gelu(d: Draw) -> tuple[Compute, Compute]:
    x = d.tensor(d.one_of(1, 5), d.one_of(512, 7, 33), scale=3)
    ours = d.here(x)
    return lambda: quick_gelu(ours), lambda: x.float() * torch.sigmoid(1.702 * x.float())


def _written(d: Draw) -> tuple[Compute, Compute]:
    tokens, heads, width = d.one_of(1, 3, 20), d.one_of(8, 1, 2), d.one_of(64, 24)
    values, pages = d.tensor(heads, tokens, width).transpose(0, 1), d.tensor(3, PAGE, heads, width)
    slots = torch.randperm(3 * PAGE, generator=d.numbers)[:tokens]
    ours = Pages(d.here(pages).clone())

    def write() -> Tensor:
        write_pages(ours, d.here(slots), d.here(values))
        return ours.rows

    return write, lambda: pages.float().flatten(0, 1).index_copy(0, slots, values.float()).view(pages.shape)


EXAMPLES: dict[str, Example] = {
    "linear": _linear,
    "linear, int8": partial(_stored_linear, "int8"),
    "linear, int4": partial(_stored_linear, "int4"),
    "input_major_linear": _input_major,
    "experts": _experts,
    "experts, int8": partial(_stored_experts, "int8"),
    "experts, int4": partial(_stored_experts, "int4"),
    "rms_norm": _norm,
    "rotate": _rotate,
    "gated_product": _gated,
    "quick_gelu": _quick_gelu,
    "router_scores": _scores,
    "query_to_latent": _latent_in,
    "latent_to_values": _latent_out,
    "attention, causal": partial(_prompt, True),
    "attention, whole": partial(_prompt, False),
    "decode_attention": _decode,
    "decode_latent_attention": _latent_decode,
    "continued_attention": _continued,
    "continued_latent_attention": _latent_continued,
    "write_pages": _written,
    **TRAINED,
}
"""By the operation's name in ``ops``."""
