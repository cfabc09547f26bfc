"""The compiled kernels of training: attention and products of experts, and their gradients, against fp64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close as close

from modelwright.ops.attention import attention, fused_attention, reference_attention
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.cross_entropy import linear_cross_entropy
from modelwright.ops.experts import grouped_linear, segmented_linear
from modelwright.ops.trained_attention import is_trained_here

TYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if kernels.multiplies_by_vectors(dtype)]
NEAR = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
"""How far a result may be from the true one, as a share of its norm: some of the last bits of the type."""

pytestmark = pytest.mark.skipif(not TYPES, reason="this processor has no registers of 16 floats")
bf16_by_vectors = pytest.mark.skipif(
    torch.bfloat16 not in TYPES, reason="vectors do not multiply bf16 here, or not best"
)


def drawn(dtype, batch, heads, kv_heads, tokens, keys, k_dim, v_dim):
    """Queries, keys, values and a gradient as layers hand them over: heads beside each other in memory."""
    sizes = (tokens, heads, k_dim), (keys, kv_heads, k_dim), (keys, kv_heads, v_dim), (tokens, heads, v_dim)
    return [torch.randn(batch, *size).to(dtype).transpose(1, 2) for size in sizes]


def with_gradients(function, parts, gradient):
    leaves = [part.detach().requires_grad_() for part in parts]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient.to(out.dtype))]


def near(found, true, dtype, terms=None):
    """Whether results have the type and the numbers of the true ones: of their size, or of what their terms cancel."""
    for own, exact, size in zip(found, true, terms or [0.0] * len(true), strict=True):
        assert own.dtype == dtype and own.shape == exact.shape
        assert (own.double() - exact).norm() <= NEAR[dtype] * max(exact.norm(), size)


def sizes_of_terms(q, k, v, gradient, mask, scale, causal):
    """Norms of attention and its gradients if no terms cancelled: where a query sees one key, all of its own do."""
    groups = q.shape[1] // k.shape[1]
    k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
    sees = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril() if causal else torch.tensor(True)
    sees = sees if mask is None else sees & mask
    weights = (q @ k.mT * scale).masked_fill(~sees, -torch.inf).softmax(-1)
    of_weights, of_sums = gradient**2 @ (v**2).mT, (gradient**2 * (weights @ v) ** 2).sum(-1, keepdim=True)
    of_scores = scale**2 * weights**2 * (of_weights + of_sums)
    terms = weights**2 @ v**2, of_scores @ k**2, of_scores.mT @ q**2, (weights**2).mT @ gradient**2
    return [each.sum() ** 0.5 for each in terms]


@settings(max_examples=40)
@given(
    st.sampled_from(TYPES),
    st.integers(1, 3),
    st.sampled_from([(1, 1), (4, 4), (6, 2)]),
    st.one_of(st.integers(1, 70), st.sampled_from([511, 513, 550])),  # keys are taken 512 at a time, queries 60
    st.sampled_from([(16, 16), (64, 64), (48, 32), (6, 24), (96, 2)]),
    st.sampled_from(["causal", "whole", "mask", "mask of heads", "mask of all", "fewer keys", "more keys"]),
    st.integers(0, 2**16),
)
def test_attention_and_its_gradients(dtype, batch, heads, tokens, widths, sees, seed):
    torch.manual_seed(seed)
    batch = 1 if tokens > 70 else batch
    keys = {"fewer keys": max(tokens // 2, 1), "more keys": tokens + 40}.get(sees, tokens)
    *parts, gradient = drawn(dtype, batch, *heads, tokens, keys, *widths)
    mask = None
    if sees.startswith("mask"):
        shape = {"mask": (batch, 1), "mask of heads": (1, heads[0]), "mask of all": ()}[sees]
        mask = torch.rand(*shape, tokens, keys) < 0.5
        mask |= torch.eye(tokens, dtype=torch.bool)  # each query sees its own key at least
    causal = sees == "causal"
    assert is_trained_here(*(part.requires_grad_() for part in parts), mask)
    how = {"mask": mask, "scale": -0.3, "causal": causal}
    true = with_gradients(
        partial(reference_attention, softmax_dtype=torch.float64, **how),
        [part.double() for part in parts],
        gradient.double(),
    )
    terms = sizes_of_terms(*(part.detach().double() for part in (*parts, gradient)), **how)
    near(with_gradients(partial(attention, **how), parts, gradient), true, dtype, terms)


@pytest.mark.parametrize("dtype", TYPES)
def test_it_is_what_torch_keeps_for_gradients(dtype):
    """Values narrower than keys are not widened, and no scores are kept."""
    *parts, gradient = drawn(dtype, 2, 4, 4, 200, 200, 48, 32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        with_gradients(partial(attention, mask=None, scale=0.2, causal=True), parts, gradient)
    assert sum(kept) == sum(part.numel() for part in (*parts, gradient)) + 2 * 4 * 200


@pytest.mark.parametrize("dtype", TYPES)
def test_a_query_that_sees_nothing_gives_zeros_and_takes_no_gradient(dtype):
    *parts, gradient = drawn(dtype, 1, 2, 2, 40, 40, 16, 16)
    mask = torch.ones(40, 40).tril().bool()
    mask[7] = False
    out, of_q, of_k, of_v = with_gradients(partial(fused_attention, mask=mask, scale=0.3), parts, gradient)
    assert not out[:, :, 7].any() and not of_q[:, :, 7].any() and of_q[:, :, 8].any()
    assert all(each.isfinite().all() for each in (out, of_q, of_k, of_v))


@pytest.mark.parametrize("where", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_no_number_is_not_hidden(dtype, where):
    parts = drawn(dtype, 1, 2, 2, 70, 70, 16, 16)
    parts[where] = parts[where].clone()
    parts[where][0, 1, 20, 3] = torch.nan
    *parts, gradient = parts
    out, of_q, of_k, of_v = with_gradients(partial(fused_attention, mask=None, scale=0.3, causal=True), parts, gradient)
    assert out[0, 1, 20].isnan().any() == (where < 3) and not out[0, 0].isnan().any()
    assert of_q[0, 1, 20].isnan().all() and not of_q[0, 0].isnan().any()
    assert of_k[0, 1, 20].isnan().any() and of_v[0, 1].isnan().any() == (where != 2)


@pytest.mark.parametrize("dtype", TYPES)
def test_threads_change_nothing(dtype):
    *parts, gradient = drawn(dtype, 3, 6, 2, 130, 130, 32, 16)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 4):
        torch.set_num_threads(threads)
        try:
            found.append(with_gradients(partial(attention, mask=None, scale=0.2, causal=True), parts, gradient))
        finally:
            torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("dtype", TYPES)
def test_memory_may_lie_anyhow(dtype):
    """Heads before tokens, numbers apart, an odd number of them from token to token, a gradient that is one number."""
    torch.manual_seed(1)
    *plain, _ = drawn(dtype, 2, 2, 2, 33, 33, 8, 8)
    how = partial(attention, mask=None, scale=0.3, causal=True)
    true = with_gradients(how, plain, torch.ones(1, dtype=dtype).expand(2, 2, 33, 8))
    wide = [F.pad(part, (1, 2)) for part in plain]
    for laid in (
        [part.contiguous() for part in plain],
        [part.mT.contiguous().mT for part in plain],
        [part[..., 1:-2] for part in wide],
    ):
        assert all(map(torch.equal, with_gradients(how, laid, torch.ones(2, 2, 33, 8)), true))


@pytest.mark.parametrize("dtype", TYPES)
def test_autocast_decides_the_type(dtype):
    *parts, gradient = drawn(torch.float32, 1, 2, 2, 20, 20, 8, 8)
    how = partial(attention, mask=None, scale=0.3, causal=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out, *of_parts = with_gradients(how, parts, gradient)
    assert out.dtype == dtype and {each.dtype for each in of_parts} == {torch.float32}
    low = with_gradients(how, [part.to(dtype) for part in parts], gradient)
    assert all(torch.equal(own, other.to(own.dtype)) for own, other in zip([out, *of_parts], low, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: (q.double(), k.double(), v.double(), None),
        lambda q, k, v: (q, k, v, torch.zeros(20, 20)),
        lambda q, k, v: (q.bfloat16()[..., 1:], k.bfloat16()[..., 1:], v.bfloat16(), None),
        lambda q, k, v: (q[:0], k[:0], v[:0], None),
        lambda q, k, v: (q.to("meta"), k.to("meta"), v.to("meta"), None),
    ],
    ids=["fp64", "a mask that is added", "an odd width in bf16", "nothing", "no numbers"],
)
def test_all_else_is_torchs(change):
    *parts, _ = drawn(torch.float32, 1, 2, 2, 20, 20, 8, 8)
    q, k, v, mask = change(*parts)
    assert not is_trained_here(q.requires_grad_(), k, v, mask)
    assert attention(q, k, v, mask, 0.3).requires_grad


@pytest.mark.parametrize(
    ("heads", "rows", "keys", "width"), [(2, 2, 20, 8), (3, 3, 20, 8), (3, 1, 20, 8), (3, 3, 9, 8), (3, 3, 20, 4)]
)
def test_what_does_not_fit_is_left_to_torch(heads, rows, keys, width):
    """Pointers have no sizes: keys for other rows, heads or widths would be read from beyond their memory."""
    q, k, v, _ = drawn(torch.float32, 3, 3, 3, 20, 20, 8, 8)
    k, v = k[:rows, :heads, :, :width], v[:rows, :heads, :keys]
    assert is_trained_here(q.requires_grad_(), k, v, None) == (keys == 20 and width == 8 and heads == rows == 3)


def test_fp64_stays_fp64_under_autocast():
    q, k, v, _ = (part.double().requires_grad_() for part in drawn(torch.float32, 1, 2, 2, 20, 20, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(q, k, v, None, 0.3).dtype == torch.float64


def test_a_transformation_of_torch_func_computes_by_torch():
    *parts, _ = drawn(torch.float32, 1, 2, 2, 20, 20, 8, 8)

    def loss(q):
        return attention(q, *parts[1:], None, 0.3, causal=True).square().sum()

    (true,) = torch.autograd.grad(loss(leaf := parts[0].clone().requires_grad_()), leaf)
    close(torch.func.grad(loss)(parts[0]), true, rtol=1e-4, atol=1e-5)


@bf16_by_vectors
@settings(max_examples=40)
@given(
    st.lists(st.sampled_from([0, 0, 1, 2, 11, 12, 13, 48, 90]), min_size=1, max_size=7),
    st.sampled_from([2, 30, 64, 130, 1030]),
    st.sampled_from([2, 32, 70, 256]),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_products_of_runs_and_their_gradients(counts, width, out, turned, seed):
    torch.manual_seed(seed)
    counts = torch.tensor(counts)
    rows = int(counts.sum())
    x, gradient = torch.randn(rows, width).bfloat16(), torch.randn(rows, out).bfloat16()
    weight = (torch.randn(len(counts), out, width) * width**-0.5).bfloat16()
    weight = weight.mT.contiguous().mT if turned else weight
    assert kernels.serves_grouped(x, weight)
    true = with_gradients(partial(segmented_linear, counts=counts), (x.double(), weight.double()), gradient)
    near(with_gradients(partial(grouped_linear, counts=counts), (x, weight), gradient), true, torch.bfloat16)


@bf16_by_vectors
def test_an_expert_without_rows_takes_no_gradient():
    x, weight = torch.randn(5, 8).bfloat16(), torch.randn(3, 6, 8).bfloat16()
    of_weight = with_gradients(
        lambda w: grouped_linear(x, w, torch.tensor([2, 0, 3])), (weight,), torch.ones(5, 6).bfloat16()
    )[1]
    assert of_weight[0].any() and not of_weight[1].any() and of_weight[2].any()


@bf16_by_vectors
def test_counts_must_be_of_all_rows_and_may_have_any_type():
    x, weight = torch.randn(5, 8).bfloat16(), torch.randn(3, 6, 8).bfloat16()
    wanted = kernels.grouped_linear(x, weight, torch.tensor([2, 0, 3]))
    assert torch.equal(kernels.grouped_linear(x, weight, torch.tensor([2, 0, 3], dtype=torch.int32)), wanted)
    for counts in ([2, 0, 9], [2, 0, 2], [6, -1, 0]):
        with pytest.raises(ValueError, match=r"counts must be of all rows \(5\), got "):
            kernels.grouped_linear(x, weight, torch.tensor(counts))
        with pytest.raises(ValueError, match=r"counts must be of all rows \(5\), got "):
            kernels.grouped_weight_gradient(x, x, torch.tensor(counts))
    assert not kernels.serves_grouped(x[:, :4], weight) and not kernels.serves_grouped_gradient(x, x[:4])


@bf16_by_vectors
def test_gradients_of_products_have_gradients():
    counts = torch.tensor([3, 0, 2])
    x, weight = torch.randn(5, 8).bfloat16(), torch.randn(3, 6, 8).bfloat16()

    def second(product, *parts):
        parts = [part.requires_grad_() for part in parts]
        firsts = torch.autograd.grad(product(*parts, counts).square().sum(), parts, create_graph=True)
        return torch.autograd.grad(sum(first.square().sum() for first in firsts), parts)

    true = second(segmented_linear, x.double(), weight.double())
    for own, exact in zip(second(grouped_linear, x, weight), true, strict=True):
        assert (own.double() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_gradients_of_attention_have_gradients(dtype, causal, kv_heads):
    """As penalties on gradients and products with a Hessian ask for them."""

    def second(function, *parts):
        parts = [part.detach().requires_grad_() for part in parts]
        firsts = torch.autograd.grad(
            function(*parts, None, 0.3, causal=causal).square().sum(), parts, create_graph=True
        )
        return torch.autograd.grad(sum(first.square().sum() for first in firsts), parts)

    q, k, v, _ = drawn(dtype, 1, 4, kv_heads, 20, 20, 8, 8)
    wanted = partial(reference_attention, softmax_dtype=torch.float64)
    true = second(wanted, q.double(), k.double(), v.double())
    for own, exact in zip(second(attention, q, k, v), true, strict=True):
        assert (own.double() - exact).norm() < (1e-5 if dtype == torch.float32 else 0.03) * exact.norm()


def test_gradients_of_a_loss_in_chunks_have_none():
    x, weight = torch.randn(4, 8).requires_grad_(), torch.randn(16, 8).requires_grad_()
    loss = linear_cross_entropy(x, weight, torch.arange(4), 2)
    (of_x,) = torch.autograd.grad(loss.square(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        of_x.sum().backward()
