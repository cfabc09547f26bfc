"""Every operation on no rows at all: a step that draws nothing reads a head with none."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from modelwright.ops.attention import attention, fused_attention, reference_attention
from modelwright.ops.experts import experts, grouped_experts, looped_experts
from modelwright.ops.gated import gated_product
from modelwright.ops.input_major import input_major_linear
from modelwright.ops.latent import latent_to_values, query_to_latent
from modelwright.ops.limits import Limits, limit
from modelwright.ops.linear import linear, linears
from modelwright.ops.norm import reference_rms_norm, rms_norm
from modelwright.ops.page_writes import write_pages
from modelwright.ops.paged import (
    decode_attention,
    decode_latent_attention,
    gathered_attention,
    gathered_latent_attention,
    paged_attention,
)
from modelwright.ops.pages import Pages
from modelwright.ops.quick_gelu import quick_gelu
from modelwright.ops.rotary import rotate, rotate_half_split, rotate_interleaved
from modelwright.ops.routing import router_scores
from modelwright.ops.stored import stored_experts, stored_linear
from modelwright.ops.weight_only import dequantise, quantise_int4, quantise_int8

D = 64
PAGES = Pages(torch.zeros(2, 16, 2, D))
LATENT, ROTATED = Pages(torch.zeros(2, 16, D)), Pages(torch.zeros(2, 16, 32))
NO_CONTEXTS, NO_TABLES = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1, dtype=torch.int32)
NO_CHOICES, NO_WEIGHTS = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2)


def stacks(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(4, 2 * D, D, dtype=dtype), torch.zeros(4, D, D, dtype=dtype)


def none(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


OPERATIONS: dict[str, tuple[Callable[[torch.dtype], torch.Tensor], tuple[int, ...]]] = {
    "linear": (lambda t: linear(none(0, D, dtype=t), none(48, D, dtype=t)), (0, 48)),
    "linear of a batch": (
        lambda t: linear(none(1, 0, D, dtype=t), none(48, D, dtype=t), none(48, dtype=t)),
        (1, 0, 48),
    ),
    "linears": (lambda t: linears(none(0, D, dtype=t), [(none(48, D, dtype=t), None)] * 2)[1], (0, 48)),
    "int8": (lambda t: stored_linear(none(1, 0, D, dtype=t), quantise_int8(none(48, D, dtype=t))), (1, 0, 48)),
    "int4": (lambda t: stored_linear(none(1, 0, D, dtype=t), quantise_int4(none(48, D, dtype=t))), (1, 0, 48)),
    "dynamic int8": (
        lambda t: stored_linear(none(1, 0, D, dtype=t), quantise_int8(none(48, D, dtype=t)), None, True),
        (1, 0, 48),
    ),
    "dynamic int8 with a bias": (
        lambda t: stored_linear(none(0, D, dtype=t), quantise_int8(none(48, D, dtype=t)), none(48, dtype=t), True),
        (0, 48),
    ),
    "input major": (
        lambda t: input_major_linear(none(1, 0, D, dtype=t), none(D, 48, dtype=t), none(48, dtype=t)),
        (1, 0, 48),
    ),
    "no weights": (lambda t: dequantise(quantise_int8(none(0, D, dtype=t))), (0, D)),
    "norm": (lambda t: rms_norm(none(1, 0, D, dtype=t), none(D, dtype=t), 1e-6), (1, 0, D)),
    "norm written out": (lambda t: reference_rms_norm(none(1, 0, D, dtype=t), none(D, dtype=t), 1e-6), (1, 0, D)),
    "gated": (lambda t: gated_product(none(0, D, dtype=t), none(0, D, dtype=t), F.silu), (0, D)),
    "gelu": (lambda t: quick_gelu(none(0, D, dtype=t)), (0, D)),
    "half rotation": (
        lambda t: rotate(
            none(1, 2, 0, D, dtype=t), none(1, 0, D // 2, dtype=t), none(1, 0, D // 2, dtype=t), rotate_half_split
        ),
        (1, 2, 0, D),
    ),
    "interleaved rotation": (
        lambda t: rotate(
            none(1, 2, 0, D, dtype=t), none(1, 0, D // 2, dtype=t), none(1, 0, D // 2, dtype=t), rotate_interleaved
        ),
        (1, 2, 0, D),
    ),
    "routing": (lambda t: router_scores(none(0, D, dtype=t), none(4, D, dtype=t), "softmax", torch.float32)[1], (0, 4)),
    "experts": (lambda t: experts(none(0, D, dtype=t), NO_CHOICES, NO_WEIGHTS, *stacks(t), F.silu), (0, D)),
    "experts in groups": (
        lambda t: grouped_experts(none(0, D, dtype=t), NO_CHOICES, NO_WEIGHTS, *stacks(t), F.silu),
        (0, D),
    ),
    "experts in turn": (
        lambda t: looped_experts(none(0, D, dtype=t), NO_CHOICES, NO_WEIGHTS, *stacks(t), F.silu),
        (0, D),
    ),
    "int8 experts": (
        lambda t: stored_experts(
            none(0, D, dtype=t), NO_CHOICES, NO_WEIGHTS, *map(quantise_int8, stacks(t)), F.silu, dynamic=True
        ),
        (0, D),
    ),
    "int4 experts": (
        lambda t: stored_experts(none(0, D, dtype=t), NO_CHOICES, NO_WEIGHTS, *map(quantise_int4, stacks(t)), F.silu),
        (0, D),
    ),
    "decodes": (
        lambda t: decode_attention(none(0, 4, D, dtype=t), PAGES, PAGES, NO_CONTEXTS, NO_TABLES, 1.0),
        (0, 4, D),
    ),
    "gathered decodes": (
        lambda t: gathered_attention(none(0, 4, D, dtype=t), PAGES, PAGES, NO_CONTEXTS, NO_TABLES, 1.0),
        (0, 4, D),
    ),
    "pages": (lambda t: paged_attention(none(0, 4, D, dtype=t), PAGES, PAGES, [0], [], NO_TABLES, 1.0), (0, 4, D)),
    "latent decodes": (
        lambda t: decode_latent_attention(
            none(0, 4, D, dtype=t), none(0, 4, 32, dtype=t), LATENT, ROTATED, NO_CONTEXTS, NO_TABLES, 1.0
        ),
        (0, 4, D),
    ),
    "gathered latents": (
        lambda t: gathered_latent_attention(
            none(0, 4, D, dtype=t), none(0, 4, 32, dtype=t), LATENT, ROTATED, NO_CONTEXTS, NO_TABLES, 1.0
        ),
        (0, 4, D),
    ),
    "into the latent space": (
        lambda t: query_to_latent(none(1, 4, 0, 32, dtype=t), none(256, D, dtype=t)),
        (1, 4, 0, D),
    ),
    "out of it": (lambda t: latent_to_values(none(1, 4, 0, D, dtype=t), none(256, D, dtype=t), 32), (1, 4, 0, 32)),
    "attention": (
        lambda t: attention(none(1, 4, 0, D, dtype=t), *[none(1, 2, 3, D, dtype=t)] * 2, None, 1.0),
        (1, 4, 0, D),
    ),
    "fused attention": (
        lambda t: fused_attention(none(1, 4, 0, D, dtype=t), *[none(1, 4, 3, D, dtype=t)] * 2, None, 1.0),
        (1, 4, 0, D),
    ),
    "written attention": (
        lambda t: reference_attention(none(1, 4, 0, D, dtype=t), *[none(1, 2, 3, D, dtype=t)] * 2, None, 1.0),
        (1, 4, 0, D),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_rows_give_no_rows(name, dtype):
    operation, shape = OPERATIONS[name]
    with torch.inference_mode():
        assert tuple(operation(dtype).shape) == shape


def test_nothing_is_written_and_nothing_limited():
    write_pages(PAGES, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, D))
    limits = Limits.of([(3, 0.5, 0.1)])
    assert limit(torch.zeros(0, 8), limits.rows(torch.zeros(0, dtype=torch.int64))).shape == (0, 8)
