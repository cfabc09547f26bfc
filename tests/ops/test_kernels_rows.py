"""Norms, rotations, activations, scores and absorbed projections by the kernels, each beside what torch gives."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.gated import gated_halves, gated_product
from modelwright.ops.norm import reference_rms_norm, rms_norm
from modelwright.ops.rotary import (
    inverse_frequencies,
    rope_table,
    rotate,
    rotate_by_matrix,
    rotate_half_split,
    rotate_interleaved,
)
from modelwright.ops.routing import reference_router_scores

pytestmark = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-7, "atol": 2**-7}}


@settings(max_examples=30)
@given(DTYPES, st.integers(1, 70), st.sampled_from([1, 15, 16, 40, 1024]), st.booleans(), st.integers(0, 2**16))
@torch.inference_mode()
def test_norms_equal_torchs(dtype, rows, dim, once, seed):
    torch.manual_seed(seed)
    weight, x = torch.randn(dim).to(dtype), 3 * torch.randn(1, rows, dim).to(dtype)
    assert kernels.serves_rows(x, weight)
    found, wanted = rms_norm(x, weight, 1e-5, once), reference_rms_norm(x, weight, 1e-5, once)
    torch.testing.assert_close(found, wanted, **CLOSE[dtype])
    assert torch.equal(found, kernels.rms_norm(x, weight, 1e-5, once))


@settings(max_examples=30)
@given(DTYPES, st.integers(1, 5), st.integers(1, 40), st.sampled_from([2, 6, 64]), st.booleans(), st.integers(0, 2**16))
@torch.inference_mode()
def test_rotations_equal_torchs(dtype, heads, tokens, dim, interleaved, seed):
    torch.manual_seed(seed)
    wide = torch.randn(1, tokens, heads, dim + 3).to(dtype)
    x = wide.transpose(1, 2)[..., :dim]  # as a layer hands them over: heads beside each other, a part of each
    cos, sin = rope_table(torch.randint(0, 5000, (1, tokens)), inverse_frequencies(dim, 10000.0))
    wanted = (rotate_interleaved if interleaved else rotate_half_split)(x, cos, sin)
    found = kernels.rotate(x, cos, sin, interleaved)
    assert found.shape == wanted.shape and found.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(found, wanted, **CLOSE[dtype])
    cos, sin = cos.bfloat16(), sin.bfloat16()  # as transformers' Llama has them: every product and sum is rounded
    wanted = (rotate_interleaved if interleaved else rotate_half_split)(x, cos, sin)
    assert torch.equal(kernels.rotate(x, cos, sin, interleaved), wanted)


@settings(max_examples=30)
@given(DTYPES, st.integers(1, 9), st.sampled_from([1, 15, 16, 33, 1408]), st.integers(0, 2**16))
@torch.inference_mode()
def test_gated_activations_equal_torchs(dtype, rows, dim, seed):
    torch.manual_seed(seed)
    gate, up = (20 * torch.randn(2, rows, 1, dim)).to(dtype)
    found, wanted = kernels.silu_product(gate, up), F.silu(gate) * up
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=2**-6 if dtype == torch.bfloat16 else 1e-5, atol=1e-30)


@torch.inference_mode()
def test_gated_activations_keep_what_is_no_number():
    gate = torch.tensor([[torch.nan, torch.inf, -200.0, 0.0]])
    for dtype in CLOSE:
        found = kernels.silu_product(gate.to(dtype), torch.ones(1, 4, dtype=dtype))[0].tolist()
        assert found[0] != found[0] and found[1:] == [torch.inf, 0.0, 0.0]


def gradients(function, *parts):
    leaves = [part.detach().clone().requires_grad_() for part in parts]
    out = function(*leaves)
    torch.manual_seed(1)
    gradient = torch.randn(out.shape).bfloat16().to(out.dtype)  # the same numbers in any type
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


def same(found, wanted, dtype):
    for own, other in zip(found, wanted, strict=True):
        assert own.dtype == dtype and own.shape == other.shape
        allowed = CLOSE[dtype]["rtol"]
        assert (own.double() - other).norm() <= allowed * other.norm() + 1e-12


@settings(max_examples=30)
@given(DTYPES, st.integers(1, 9), st.sampled_from([1, 15, 16, 33, 4099]), st.integers(0, 2**16))
def test_gates_have_their_gradients(dtype, rows, dim, seed):
    """Beside fp64, apart and as halves of rows."""
    torch.manual_seed(seed)
    gate, up = (3 * torch.randn(2, rows, dim)).to(dtype).unbind()
    both = torch.cat((gate, up), dim=-1)
    same(
        gradients(lambda a, b: gated_product(a, b, F.silu), gate, up),
        gradients(lambda a, b: F.silu(a) * b, gate.double(), up.double()),
        dtype,
    )
    same(
        gradients(lambda x: gated_halves(x, F.silu), both),
        gradients(lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], both.double()),
        dtype,
    )


@settings(max_examples=30)
@given(
    DTYPES,
    st.integers(1, 3),
    st.booleans(),
    st.integers(1, 40),
    st.sampled_from([2, 6, 64]),
    st.sampled_from([rotate_half_split, rotate_by_matrix, rotate_interleaved]),
    st.integers(0, 2**16),
)
def test_rotations_have_their_gradients(dtype, batch, one_table, tokens, dim, by, seed):
    torch.manual_seed(seed)
    x = torch.randn(batch, tokens, 3, dim).to(dtype).transpose(1, 2)
    positions = torch.randint(0, 5000, (1 if one_table else batch, tokens))
    tables = rope_table(positions, inverse_frequencies(dim, 10000.0))
    wide = [table.double() for table in tables]
    same(gradients(lambda x: rotate(x, *tables, by), x), gradients(lambda x: by(x, *wide), x.double()), dtype)


def test_gradients_of_their_gradients_are_right():
    torch.manual_seed(0)
    gate, up, both = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True), torch.randn(3, 16)
    x, tables = torch.randn(2, 2, 5, 6), rope_table(torch.arange(5)[None], inverse_frequencies(6, 100.0))
    cases = [
        (lambda a, b: gated_product(a, b, F.silu), lambda a, b: F.silu(a) * b, (gate, up)),
        (lambda a: gated_halves(a, F.silu), lambda a: F.silu(a[:, :8]) * a[:, 8:], (both,)),
        (lambda a: rotate(a, *tables, rotate_interleaved), lambda a: rotate_interleaved(a, *tables), (x,)),
    ]
    for ours, torchs, parts in cases:
        found = []
        for function in (ours, torchs):
            leaves = [part.detach().clone().requires_grad_() for part in parts]
            firsts = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
            found.append(torch.autograd.grad(sum(first.pow(3).sum() for first in firsts), leaves))
        for own, other in zip(*found, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of torch itself
def test_gradients_that_go_forward_are_torchs():
    gate, up, along = torch.randn(3, 4, 8).unbind()
    x, tables = torch.randn(2, 2, 5, 6), rope_table(torch.arange(5)[None], inverse_frequencies(6, 100.0))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(gate.requires_grad_(), along)
        found = forward_ad.unpack_dual(gated_product(dual, up, F.silu)).tangent
        wanted = forward_ad.unpack_dual(F.silu(dual) * up).tangent
        assert found is not None and torch.equal(found, wanted)
        turned = rotate(forward_ad.make_dual(x.requires_grad_(), x.detach()), *tables, rotate_half_split)
        assert torch.equal(forward_ad.unpack_dual(turned).tangent, rotate_half_split(x.detach(), *tables))


@pytest.mark.parametrize("trained", [False, True])
def test_what_torch_would_repeat_is_left_to_it(trained):
    """Pointers have no sizes: what is as wide as a row, or one token's table, would be read from beyond its memory."""
    gate, up = torch.randn(3, 8), torch.randn(8)
    x, table = torch.randn(2, 2, 5, 6), torch.randn(1, 1, 3)
    with torch.set_grad_enabled(trained):
        for part in (gate, x):
            part.requires_grad_(trained)
        assert torch.equal(gated_product(gate, up, F.silu), F.silu(gate) * up)
        assert torch.equal(rotate(x, table, table, rotate_half_split), rotate_half_split(x, table, table))


def test_results_lie_where_their_operands_do():
    """Whatever device new tensors are made on."""
    gate = torch.randn(3, 8)
    with torch.device("meta"), torch.no_grad():
        assert not gated_product(gate, gate, F.silu).is_meta


@settings(max_examples=30)
@given(DTYPES, st.integers(1, 9), st.sampled_from([1, 15, 16, 33, 2048]), st.integers(0, 2**16))
@torch.inference_mode()
def test_quick_gelu_is_rounded_once(dtype, rows, dim, seed):
    torch.manual_seed(seed)
    x = (10 * torch.randn(rows, dim)).to(dtype)
    wanted = x.double() * (1.702 * x.double()).sigmoid()
    found = kernels.quick_gelu(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-30)


@torch.inference_mode()
def test_quick_gelu_keeps_what_is_no_number():
    for dtype in CLOSE:
        found = kernels.quick_gelu(torch.tensor([torch.nan, torch.inf, -200.0, 0.0], dtype=dtype)).tolist()
        assert found[0] != found[0] and found[1:] == [torch.inf, 0.0, 0.0]


@settings(max_examples=30)
@given(DTYPES, DTYPES, st.booleans(), st.integers(1, 70), st.sampled_from([(1, 3), (32, 1024), (7, 40)]))
@torch.inference_mode()
def test_scores_of_experts_equal_torchs(dtype, stored, softmax, tokens, sizes):
    experts, dim = sizes
    torch.manual_seed(tokens)
    weight, x = (torch.randn(experts, dim) / dim**0.5).to(stored), torch.randn(tokens, dim).to(dtype)
    wanted = reference_router_scores(x, weight, "softmax" if softmax else "sigmoid", torch.float32)
    for ways in zip(kernels.route(x, weight, softmax), wanted, strict=True):
        torch.testing.assert_close(*ways, rtol=1e-5, atol=1e-5)


def test_other_types_and_strides_are_left_to_torch():
    x, weight = torch.randn(1, 2, 4, 8), torch.ones(8)
    assert kernels.serves_rows(x, weight)
    assert not kernels.serves_rows(x.double(), weight) and not kernels.serves_rows(x.mT, weight)
    assert not kernels.serves_rows(x, torch.ones(16)[::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 3, 8), (5, 24)])
def test_vectors_are_placed_where_their_slots_say(shape, dtype):
    wider = torch.zeros(11, *shape[1:-1], shape[-1] + 4, dtype=dtype)  # pages may be views of a wider pool
    rows, slots = wider[..., 2:-2], torch.tensor([7, 0, 10, 3, 4])
    values = torch.randn(*shape[1:-1], shape[0], shape[-1]).to(dtype).transpose(0, -2)
    assert kernels.serves_placing(rows, slots, values)
    kernels.place(rows, slots, values)
    assert torch.equal(rows, torch.zeros_like(rows).index_copy(0, slots, values))
    assert wider[..., :2].eq(0).all() and wider[..., -2:].eq(0).all()
