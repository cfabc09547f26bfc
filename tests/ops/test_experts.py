"""The grouped product where it is delicate: odd widths and types, no tokens, idle experts, gradients, autocast."""

import pytest
import torch
import torch.nn.functional as F

from modelwright.ops.experts import (
    expert_hidden,
    grouped_experts,
    grouped_linear,
    looped_experts,
    opaque_grouped_linear,
    segmented_linear,
)

COUNTS = torch.tensor([2, 0, 3, 1])


def stacked(rows: int, dim: int, width: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Random rows ``[rows, dim]`` and weights of 4 experts ``[4, width, dim]``, both wanting gradients."""
    torch.manual_seed(0)
    return torch.randn(rows, dim).to(dtype).requires_grad_(), torch.randn(4, width, dim).to(dtype).requires_grad_()


def test_a_gate_multiplies_the_second_half():
    projected = torch.tensor([[1.0, -2.0, 10.0, 20.0]])
    assert expert_hidden(projected, F.relu, gated=True).tolist() == [[10, 0]]
    assert expert_hidden(projected, F.relu, gated=False).tolist() == [[1, 0, 10, 20]]


def test_the_loop_by_hand():
    x = torch.tensor([[1.0], [2.0]])
    w_in = torch.tensor([[[1.0], [10.0]], [[2.0], [3.0]]])  # gate, up
    w_out = torch.tensor([[[1.0]], [[-1.0]]])
    chosen, weights = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0, 0.5], [0.25, 0.0]])
    # token 0: expert 0 gives 1 * 10, expert 1 gives -(2 * 3); token 1: expert 1 gives -(4 * 6)
    assert looped_experts(x, chosen, weights, w_in, w_out, F.relu).tolist() == [[10 - 3], [-6]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("dim", "width"), [(16, 8), (7, 8), (16, 1407)], ids=["aligned", "odd rows", "odd width"])
def test_every_type_and_width_is_served(dtype, dim, width):
    x, weight = stacked(6, dim, width, dtype)
    expected = torch.cat([x[:2] @ weight[0].T, x[2:5] @ weight[2].T, x[5:] @ weight[3].T])
    out = grouped_linear(x, weight, COUNTS)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected)
    upstream = torch.randn(out.shape).to(dtype)
    for ours, theirs in zip(
        torch.autograd.grad(out, (x, weight), upstream),
        torch.autograd.grad(expected, (x, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("product", [grouped_linear, segmented_linear])
@pytest.mark.parametrize("width", [8, 7])
def test_idle_experts_get_zero_gradients_and_expanded_upstream_gradients_pass(product, width):
    x, weight = stacked(6, 16, width)
    product(x, weight, COUNTS).sum().backward()  # sum() sends a gradient of stride 0
    assert weight.grad is not None and x.grad is not None
    assert torch.equal(weight.grad[1], torch.zeros(width, 16))
    torch.testing.assert_close(weight.grad[2], x[2:5].sum(dim=0).expand(width, -1))


@pytest.mark.parametrize("product", [grouped_linear, segmented_linear])
@pytest.mark.parametrize("width", [8, 7])
def test_no_rows_give_no_rows_and_zero_gradients(product, width):
    x, weight = stacked(0, 16, width)
    out = product(x, weight, torch.zeros(4, dtype=torch.long))
    assert out.shape == (0, width)
    out.sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def test_rows_may_be_strided():
    x, weight = stacked(6, 16, 8)
    wide = torch.stack((x, x), dim=-1).flatten(1)[:, ::2]
    assert not wide.is_contiguous()
    torch.testing.assert_close(grouped_linear(wide, weight, COUNTS), segmented_linear(x, weight, COUNTS))


def test_autocast_computes_in_its_own_type_and_returns_the_input_type():
    x, w_in = stacked(5, 16, 16)
    w_out = torch.randn(4, 16, 8, requires_grad=True)
    chosen, weights = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 1], [1, 0]]), torch.rand(5, 2)
    plain = grouped_experts(x, chosen, weights, w_in, w_out, F.silu)
    with torch.autocast("cpu", torch.bfloat16):
        assert grouped_linear(x, w_in, torch.tensor([5, 0, 0, 0])).dtype == torch.bfloat16
        out = grouped_experts(x, chosen, weights, w_in, w_out, F.silu)
        looped = looped_experts(x, chosen, weights, w_in, w_out, F.silu)
    assert out.dtype == looped.dtype == torch.float32
    torch.testing.assert_close(out, looped, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(out, plain, rtol=0.1, atol=0.3)
    out.sum().backward()
    assert w_out.grad is not None and w_out.grad.dtype == torch.float32
    assert not w_out.grad[3].any()


def test_half_precision_sums_experts_in_the_routers_precision():
    x = torch.ones(1, 8, dtype=torch.bfloat16)
    w_in, w_out = torch.ones(3, 8, 8, dtype=torch.bfloat16), torch.ones(3, 8, 8, dtype=torch.bfloat16)
    chosen, weights = torch.tensor([[0, 1, 2]]), torch.tensor([[1.0, 0.00390625, 0.00390625]])  # 1 + 2^-8 + 2^-8
    for experts in (grouped_experts, looped_experts):
        out = experts(x, chosen, weights, w_in, w_out, torch.relu, gated=False)
        assert out.dtype == torch.bfloat16
        assert out[0, 0].item() == 64.5  # one by one, bf16 would round 64.25 down to 64 and stay there


def test_dropout_falls_on_hidden_units_and_on_outputs():
    torch.manual_seed(0)
    x, w_in, w_out = torch.ones(2000, 1), torch.ones(2, 1, 1), torch.ones(2, 1, 1)
    chosen, weights = torch.zeros(2000, 1, dtype=torch.long), torch.ones(2000, 1)
    out = grouped_experts(x, chosen, weights, w_in, w_out, torch.relu, gated=False, dropout=0.5)
    assert set(out.flatten().tolist()) == {0.0, 4.0}  # kept twice, each time doubled
    assert (out > 0).float().mean().item() == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("width", [16, 6], ids=["torch's kernel", "one product each"])
@pytest.mark.parametrize("counts", [[3, 0, 4], [0, 0, 7]])
def test_the_step_of_a_graph_is_the_grouped_product(width, counts):
    """What a compiled or exported pass holds in place of it, by torch's own check of such operations too."""
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(7, 8, generator=draw), torch.randn(3, width, 8, generator=draw)
    given = (x.requires_grad_(), weight.requires_grad_(), torch.tensor(counts))
    found, wanted = opaque_grouped_linear(*given), grouped_linear(*given)
    torch.testing.assert_close(found, wanted)
    along = torch.randn(7, width, generator=draw)
    gradients = [torch.autograd.grad((each * along).sum(), (x, weight)) for each in (found, wanted)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    torch.library.opcheck(opaque_grouped_linear, given)
