"""Products of types that a processor lacks: values and gradients against fp64, what is kept, and who makes them."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from modelwright.ops import products
from modelwright.ops.attention import attention, fused_attention, reference_attention
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.cross_entropy import linear_cross_entropy
from modelwright.ops.dispatch import KernelAwareMode
from modelwright.ops.experts import grouped_experts, grouped_linear, opaque_grouped_linear
from modelwright.ops.input_major import input_major_linear
from modelwright.ops.latent import absorbed_attention
from modelwright.ops.linear import linear
from modelwright.ops.products import addmm, matmul, patch_convolution, plain_linear

LOW = (torch.bfloat16, torch.float16)
HALF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""What rounding changes at most, of the smallest number with an exponent: half of the last place."""


@pytest.fixture
def lacking(set_vectors):
    """A processor that lacks both low types, whatever this one is."""
    set_vectors("AVX2")


@pytest.fixture(params=[None, 600], ids=["whole", "in pieces"])
def pieces(request, monkeypatch):
    """Products as a whole, and in small pieces."""
    if request.param:
        monkeypatch.setattr(products, "PIECE", request.param)
        monkeypatch.setattr(products, "LEAST", 3)


def drawn(*shape, dtype=torch.bfloat16, scale=1.0):
    return (torch.randn(*shape) * scale).to(dtype).requires_grad_()


def once_rounded(found, exact, terms):
    """Whether ``found`` is ``exact`` rounded once, after sums in fp32 of numbers that are ``terms`` in all."""
    off = (found.double() - exact).abs()
    assert bool((off <= HALF[found.dtype] * exact.abs() + 2.0**-21 * terms).all()), off.max()


def check(function, wide, operands, terms=64.0):
    """``function`` of low operands and its gradients are those of ``wide`` in fp64, each rounded once."""
    out = function(*operands)
    exact_operands = [each.detach().double().requires_grad_() for each in operands]
    exact = wide(*exact_operands)
    once_rounded(out, exact, terms)
    gradient = torch.randn(out.shape).to(out.dtype)
    found = torch.autograd.grad(out, operands, gradient)
    for own, other in zip(found, torch.autograd.grad(exact, exact_operands, gradient.double()), strict=True):
        assert own.shape == other.shape
        once_rounded(own, other, terms)


@pytest.mark.usefixtures("lacking", "pieces")
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40,), (1, 40), (70, 40), (2, 9, 40)])
def test_a_linear_layer(dtype, bias, shape):
    torch.manual_seed(len(shape))
    operands = [drawn(*shape, dtype=dtype), drawn(50, 40, dtype=dtype), *([drawn(50, dtype=dtype)] if bias else [])]
    check(linear, F.linear, operands)


@pytest.mark.usefixtures("lacking", "pieces")
def test_other_products():
    """A weight input by input, what is added to a product, and stacks of matrices."""
    torch.manual_seed(0)
    x, weight, bias, added = drawn(30, 40), drawn(40, 20), drawn(20), drawn(30, 20)
    check(input_major_linear, lambda x, w, b: x @ w + b, [x, weight, bias])
    check(lambda *all: addmm(*all, alpha=0.5), lambda c, a, b: c + 0.5 * (a @ b), [added, x, weight])
    check(matmul, torch.matmul, [drawn(2, 3, 5, 7), drawn(2, 3, 7, 4)])
    check(patch_convolution, partial(F.conv2d, stride=(4, 3)), [drawn(2, 3, 9, 8), drawn(8, 3, 4, 3), drawn(8)])


@pytest.mark.usefixtures("lacking")
def test_no_rows_and_no_gradients():
    weight, bias = drawn(5, 4), drawn(5)
    assert plain_linear(torch.empty(0, 3, 4, dtype=torch.bfloat16), weight, bias).shape == (0, 3, 5)
    with torch.no_grad():
        x = torch.randn(2, 4).bfloat16()
        once_rounded(plain_linear(x, weight, bias), F.linear(x.double(), weight.double(), bias.double()), 64)
    x, frozen = drawn(3, 4), drawn(5, 4).detach()
    plain_linear(x, frozen).sum().backward()
    assert x.grad is not None and frozen.grad is None


@pytest.mark.usefixtures("lacking")
def test_gradients_of_gradients():
    x, weight = drawn(3, 4), drawn(5, 4)
    (first,) = torch.autograd.grad(plain_linear(x, weight).float().square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.float().sum(), weight)
    x64, w64 = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    (first,) = torch.autograd.grad(F.linear(x64, w64).square().sum(), x64, create_graph=True)
    torch.testing.assert_close(second.double(), torch.autograd.grad(first.sum(), w64)[0], rtol=0.03, atol=0.2)


SHAPES = [(4, 4, 12, 12, 8, 8), (4, 2, 12, 12, 8, 4), (4, 4, 5, 12, 8, 8), (4, 4, 40, 40, 8, 8)]
"""Heads of queries and of keys, queries, keys, widths of keys and values."""


@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("masked", ["nothing", "causal", "seen", "added"])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(dtype, masked, shape):
    torch.manual_seed(1)
    heads, kv_heads, queries, keys, width, narrow = shape
    q, k, v = (drawn(2, *each, dtype=dtype).transpose(1, 2) for each in
               ((queries, heads, width), (keys, kv_heads, width), (keys, kv_heads, narrow)))  # fmt: skip
    mask = {"seen": torch.rand(2, 1, queries, keys) < 0.7, "added": torch.randn(queries, keys).to(dtype)}.get(masked)
    if masked == "seen":
        mask |= torch.eye(queries, keys, dtype=torch.bool)
    causal = masked == "causal" and queries == keys
    seen = []
    with Watching(seen):
        check_attention(fused_attention, q, k, v, mask, causal)
    assert "trained_attention" in seen and not any("scaled_dot" in name for name in seen)
    check_attention(reference_attention, q, k, v, mask, causal)


def check_attention(product, q, k, v, mask, causal):
    """Against scores written out in fp64, to what rounding a result before its gradients is worth."""
    out = product(q, k, v, mask, 0.3, 0.0, causal)
    exact = [each.detach().double().requires_grad_() for each in (q, k, v)]
    wide = mask.double() if mask is not None and mask.dtype != torch.bool else mask
    expected = reference_attention(*exact, wide, 0.3, 0.0, causal, softmax_dtype=torch.float64)
    gradient = torch.randn(out.shape).to(out.dtype)
    found = out, *torch.autograd.grad(out, (q, k, v), gradient)
    other = expected, *torch.autograd.grad(expected, exact, gradient.double())
    for own, true in zip(found, other, strict=True):
        assert (own.double() - true).norm() <= 4 * HALF[q.dtype] * true.norm()


@pytest.mark.usefixtures("lacking")
def test_values_narrower_than_keys_and_attention_in_latents():
    torch.manual_seed(2)
    q, k, v = drawn(1, 2, 6, 8), drawn(1, 2, 6, 8), drawn(1, 2, 6, 4)
    check_attention(attention, q, k, v, None, True)
    operands = drawn(2, 3, 2, 4), drawn(2, 3, 2, 4), drawn(2, 5, 6), drawn(2, 5, 4), drawn(3 * 6, 6)
    exact = [each.detach().double().requires_grad_() for each in operands]
    seen = []
    with Watching(seen):
        out = absorbed_attention(*operands, None, 0.5)
    assert not LACKED.intersection(seen)
    true = absorbed_attention(*exact, None, 0.5)
    assert (out.double() - true).norm() <= 0.02 * true.norm()
    gradient = torch.randn(out.shape).bfloat16()
    for own, other in zip(
        torch.autograd.grad(out, operands, gradient), torch.autograd.grad(true, exact, gradient.double()), strict=True
    ):
        assert (own.double() - other).norm() <= 0.03 * other.norm()


@pytest.mark.usefixtures("lacking", "pieces")
@pytest.mark.parametrize("dtype", LOW)
def test_experts_product(dtype):
    """With an expert that has no rows, and widths that torch's grouped kernel refuses."""
    torch.manual_seed(3)
    counts = torch.tensor([3, 0, 40, 7])

    def wide(x, weight):
        return torch.cat([run @ own.t() for run, own in zip(x.split(counts.tolist()), weight, strict=True)])

    for widths in ((16, 24), (9, 5)):
        check(lambda x, w: grouped_linear(x, w, counts), wide, [drawn(50, widths[1], dtype=dtype),
                                                               drawn(4, *widths, dtype=dtype)])  # fmt: skip


@pytest.mark.usefixtures("lacking", "pieces")
@pytest.mark.parametrize("dtype", LOW)
def test_the_loss_of_a_head(dtype):
    """Nothing but the gradients is rounded."""
    torch.manual_seed(4)
    x, weight, targets = drawn(30, 16, dtype=dtype), drawn(70, 16, dtype=dtype), torch.randint(70, (30,))
    loss = linear_cross_entropy(x, weight, targets, chunk=8)
    x64, w64 = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    exact = F.cross_entropy(F.linear(x64, w64), targets, reduction="sum")
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)
    for own, true in zip(torch.autograd.grad(loss, (x, weight)), torch.autograd.grad(exact, (x64, w64)), strict=True):
        once_rounded(own, true, 64)


def kept(function):
    """Floats that are kept of a computation for its gradients: the types, and the bytes of different memory."""
    types, memory = set(), {}

    def keep(tensor):
        if tensor.is_floating_point():
            types.add(tensor.dtype)
            memory[tensor.untyped_storage().data_ptr()] = tensor  # which holds it, so that no other takes its place
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out = function()
    del out
    return types, sum(tensor.untyped_storage().nbytes() for tensor in memory.values())


WAYS = {
    "linear": lambda: partial(linear, drawn(9, 40), drawn(50, 40), drawn(50)),
    "columns": lambda: partial(input_major_linear, drawn(9, 40), drawn(40, 50), drawn(50)),
    "experts": lambda: partial(grouped_linear, drawn(50, 16), drawn(4, 8, 16), torch.tensor([3, 0, 40, 7])),
    "matmul": lambda: partial(matmul, drawn(2, 9, 8), drawn(2, 8, 5)),
    "patches": lambda: partial(patch_convolution, drawn(2, 3, 8, 8), drawn(8, 3, 4, 4), drawn(8)),
    "head": lambda: partial(linear_cross_entropy, drawn(30, 16), drawn(70, 16), torch.arange(30), chunk=8),
}


@pytest.mark.parametrize("name", WAYS)
def test_what_is_kept_has_the_low_type_and_is_no_more_than_torch_keeps(monkeypatch, name):
    function = WAYS[name]()
    found = []
    for lacks in (False, True):
        monkeypatch.setattr(kernels, "torch_lacks", lambda dtype, lacks=lacks: lacks and dtype in LOW)
        found.append(kept(function))
    (_, torchs), (types, ours) = found
    assert types == {torch.bfloat16} and ours <= torchs


def test_attention_keeps_no_more_than_torch(monkeypatch):
    q, k, v = (drawn(2, 3, 24, 8) for _ in range(3))
    found = []
    for lacks in (False, True):
        monkeypatch.setattr(kernels, "torch_lacks", lambda dtype, lacks=lacks: lacks and dtype in LOW)
        found.append(kept(partial(attention, q, k, v, None, 0.3, causal=True))[1])
    assert found[1] <= found[0]


LACKED = {"mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "mv", "convolution", "linear", "matmul"}


class Watching(KernelAwareMode):
    """The operations on floats of a low type."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(isinstance(each, torch.Tensor) and each.dtype in LOW for each in args):
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("lacking")
def test_under_autocast_weights_in_fp32_are_multiplied_in_its_type():
    x, weight, bias = (drawn(*shape, dtype=torch.float32) for shape in ((6, 40), (50, 40), (50,)))
    seen = []
    with Watching(seen), torch.autocast("cpu", torch.bfloat16):
        out = linear(x, weight, bias)
        stacked = grouped_linear(x, weight[None], torch.tensor([6]))
        heads = fused_attention(*(x.view(1, 2, 12, 10).split(4, dim=2)), None, 1.0)
    assert {"product", "grouped_linear", "trained_attention"} <= set(seen) and not LACKED.intersection(seen)
    assert out.dtype == stacked.dtype == heads.dtype == torch.bfloat16
    low = [each.detach().bfloat16().double() for each in (x, weight, bias)]
    once_rounded(out, F.linear(*low), 64)
    out.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, low[1].sum(0).float().expand(6, -1), rtol=2**-7, atol=2**-7)


def test_nothing_changes_where_the_type_is_not_lacked(monkeypatch):
    monkeypatch.setattr(kernels, "torch_lacks", lambda dtype: False)
    x, weight = drawn(6, 40), drawn(50, 40)
    for call, name in ((lambda: linear(x, weight), "mm"), (lambda: matmul(x, weight.t()), "mm")):
        seen = []
        with Watching(seen):
            call()
        assert name in seen and "product" not in seen


@pytest.mark.usefixtures("lacking")
def test_graphs_transformations_and_counters_see_torchs_own_products():
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(drawn(5, 4).detach())
    layer.forward = lambda x: linear(x, layer.weight)
    x = torch.randn(3, 4).bfloat16()
    for strict in (False, True):
        exported = torch.export.export(layer, (x,), strict=strict)
        assert "modelwright" not in str(exported.graph) and "aten.linear" in str(exported.graph)
    mapped = torch.func.vmap(lambda row: plain_linear(row, layer.weight))(x)
    torch.testing.assert_close(mapped, layer.forward(x), rtol=2**-7, atol=2**-7)
    with FlopCounterMode(display=False) as counter:
        layer.forward(x)
    assert counter.get_total_flops() == 2 * 3 * 4 * 5


@pytest.mark.slow
@pytest.mark.usefixtures("lacking")
def test_a_compiled_layer_has_them_as_operations_of_its_graph():
    torch.compiler.reset()
    x, weight, w_in, w_out = drawn(2, 6, 16), drawn(16, 16), drawn(4, 24, 16), drawn(4, 16, 12)
    chosen, weights = torch.rand(12, 4).argsort(dim=-1)[:, :2], torch.rand(12, 2)

    def layer(x, weight, w_in, w_out):
        heads = linear(x, weight).unflatten(-1, (2, 8)).transpose(1, 2)
        x = x + fused_attention(heads, heads, heads, None, 0.3, causal=True).transpose(1, 2).flatten(2)
        return grouped_experts(x.flatten(0, 1), chosen, weights, w_in, w_out, torch.tanh)  # no gate of a kernel's

    operands = x, weight, w_in, w_out
    found = []
    for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        out = run(*operands)
        found.append([out, *torch.autograd.grad(out.float().square().sum(), operands)])
    for own, other in zip(*found, strict=True):
        assert torch.equal(own, other)


def test_the_opaque_step_of_a_graph_multiplies_alike_where_nothing_is_lacked(monkeypatch):
    """What the graph holds does not depend on the processor that made it."""
    x, weight, counts = drawn(50, 16), drawn(4, 8, 16), torch.tensor([3, 0, 40, 7])
    gradient, found = torch.randn(50, 8).bfloat16(), []
    for lacks in (False, True):
        monkeypatch.setattr(kernels, "torch_lacks", lambda dtype, lacks=lacks: lacks and dtype in LOW)
        out = opaque_grouped_linear(x, weight, counts)
        found.append([out, *torch.autograd.grad(out, (x, weight), gradient)])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=2**-7, atol=2**-6)
