"""Router options, stacked experts and their official parts, shared experts, and every floating type."""

import pytest
import torch
import torch.nn.functional as F

from modelwright.layers import Experts, GatedMLP, MoE, Router, Slot

DIM, EXPERTS, TOP_K, WIDTH = 8, 4, 2, 6


def make_router(**options) -> Router:
    torch.manual_seed(0)
    router = Router(DIM, EXPERTS, TOP_K, **options)
    torch.nn.init.normal_(router.weight)
    return router


def make_experts(**options) -> Experts:
    torch.manual_seed(0)
    experts = Experts(EXPERTS, DIM, WIDTH, F.silu, **options)
    for weight in experts.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return experts


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalise", [False, True])
def test_weights_are_normalised_and_then_scaled(scoring, normalise):
    x = torch.randn(5, DIM)
    router = make_router(scoring=scoring, normalise=normalise, scaling=2.5)
    routing = router(x)
    logits = x @ router.weight.T
    scores = logits.softmax(-1) if scoring == "softmax" else logits.sigmoid()
    best = scores.gather(1, routing.chosen)
    expected = best / best.sum(-1, keepdim=True) if normalise else best
    torch.testing.assert_close(routing.scores, scores)
    torch.testing.assert_close(routing.weights, expected * 2.5)


def test_one_expert_is_not_normalised():
    router = Router(DIM, EXPERTS, top_k=1, normalise=True)
    torch.nn.init.normal_(router.weight)
    assert (router(torch.randn(5, DIM)).weights < 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_and_scores_are_fp32_in_every_type_and_under_autocast(dtype):
    router, x = make_router().to(dtype), torch.randn(5, DIM).to(dtype)
    routing = router(x)
    assert routing.scores.dtype == routing.weights.dtype == torch.float32
    assert torch.equal(routing.scores, (x.float() @ router.weight.float().T).softmax(-1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(x).scores, routing.scores)


def test_the_methods_differ_as_they_should():
    x = torch.randn(64, DIM, generator=torch.Generator().manual_seed(0))
    greedy = make_router()(x).chosen
    limited = make_router(method="group_limited_greedy", groups=2, top_groups=1)(x).chosen
    assert (limited.sort(-1).values // 2).diff(dim=-1).eq(0).all()  # both from one group
    assert not torch.equal(greedy.sort(-1).values, limited.sort(-1).values)
    steered = make_router(method="noaux_tc", scoring="sigmoid")
    steered.e_score_correction_bias[3] = 10.0
    assert (steered(x).chosen == 3).any(dim=-1).all()
    assert (steered(x).weights <= 1).all()
    assert [*steered.state_dict()] == ["weight", "e_score_correction_bias"]


def test_a_routing_knows_its_balance_and_load():
    routing = make_router()(torch.randn(6, DIM))
    assert routing.load().sum() == 12
    assert routing.balance_loss(1, per_sequence=True).item() == pytest.approx(
        routing.balance_loss(1, per_sequence=False).item()
    )
    assert routing.balance_loss(3, per_sequence=True) != routing.balance_loss(1, per_sequence=True)


@pytest.mark.parametrize("gated", [True, False])
def test_slots_are_each_experts_official_tensors(gated):
    experts, x = make_experts(gated=gated), torch.randn(1, DIM)
    slots = experts.slots()
    per_expert = ["gate_proj", "up_proj", "down_proj"] if gated else ["up_proj", "down_proj"]
    assert [*slots] == [f"{e}.{part}.weight" for e in range(EXPERTS) for part in per_expert]
    assert sum(experts.get_parameter(s.parameter)[s.index].numel() for s in slots.values()) == sum(
        p.numel() for p in experts.parameters()
    )
    part = {name: experts.get_parameter(slots[f"2.{name}.weight"].parameter) for name in per_expert}
    up, down = (part[name][slots[f"2.{name}.weight"].index] for name in ("up_proj", "down_proj"))
    hidden = x @ up.T
    hidden = F.silu(x @ part["gate_proj"][slots["2.gate_proj.weight"].index].T) * hidden if gated else F.silu(hidden)
    out = experts(x, torch.tensor([[0.5]]), torch.tensor([[2]]))
    torch.testing.assert_close(out, 0.5 * hidden @ down.T)


def test_a_slot_indexes_rows_of_a_matrix_or_of_one_of_a_stack():
    assert Slot("w", 2, 4).index == (slice(2, 4),)
    assert Slot("w", 2, 4, item=7).index == (7, slice(2, 4))


@pytest.mark.parametrize("shape", [(2, 3, DIM), (1, 1, DIM), (0, 3, DIM)], ids=["batch", "one token", "no token"])
def test_shared_experts_are_added(shape):
    x = torch.randn(shape)
    shared = GatedMLP(DIM, 5, F.silu)
    with_shared, without = MoE(make_router(), make_experts(), shared), MoE(make_router(), make_experts(), None)
    out = with_shared(x)
    assert out.shape == shape and with_shared.route(x).chosen.shape == (x.numel() // DIM, TOP_K)
    torch.testing.assert_close(out, without(x) + shared(x))
    torch.testing.assert_close(with_shared(x, with_shared.route(x)), out)


def test_the_dispatcher_is_what_moves_tokens():
    class Doubling:
        def __call__(self, experts, x, routing):
            return 2 * experts(x, routing.weights, routing.chosen)

    x = torch.randn(1, 3, DIM)
    local, doubled = MoE(make_router(), make_experts(), None), MoE(make_router(), make_experts(), None, Doubling())
    torch.testing.assert_close(doubled(x), 2 * local(x))


@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_router_and_experts_in_training_and_in_eval(training):
    moe = MoE(make_router(), make_experts(), None).train(training)
    moe(torch.randn(1, 16, DIM)).square().sum().backward()
    for name, weight in moe.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_follow_fp32_and_train(dtype):
    moe, x = MoE(make_router(), make_experts(), None), torch.randn(2, 3, DIM).to(dtype).float()
    expected = moe(x)
    out = moe.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.1)
    out.sum().backward()
    assert moe.experts.down_proj.grad is not None


def test_dropout_of_experts_is_for_training_only():
    moe, x = MoE(make_router(), make_experts(dropout=0.5), None), torch.randn(1, 8, DIM)
    assert not torch.equal(moe(x), moe(x))
    moe.eval()
    assert torch.equal(moe(x), moe(x))


def test_capacity_takes_weight_from_what_overflows_in_training_only():
    router, x = make_router(normalise=True, capacity=0.5), torch.randn(8, DIM)
    free = make_router(normalise=True)(x)
    torch.testing.assert_close(router.eval()(x).weights, free.weights)
    bounded = router.train()(x)
    kept = bounded.weights > 0
    assert torch.equal(bounded.chosen, free.chosen)
    assert expert_counts(bounded.chosen[kept]).max() <= 2  # ceil(2 * 8 * 0.5 / 4)
    full = kept.all(-1)
    torch.testing.assert_close(bounded.weights[full], free.weights[full])
    one = kept.sum(-1) == 1
    torch.testing.assert_close(bounded.weights[one].sum(-1), torch.ones(int(one.sum())))  # normalised after the drop


def expert_counts(chosen):
    return torch.bincount(chosen.flatten(), minlength=EXPERTS)


def test_the_router_multiplies_in_a_type_of_its_own():
    router, x = make_router(compute=torch.bfloat16), torch.randn(5, DIM)
    assert torch.equal(router(x).logits, (x.bfloat16() @ router.weight.bfloat16().T).float())


def test_experts_compute_in_a_type_of_their_own_and_go_by_other_names():
    experts = make_experts(compute=torch.bfloat16, names=("w1", "w3", "w2"))
    assert [*experts.slots()][:3] == ["0.w1.weight", "0.w3.weight", "0.w2.weight"]
    weights, chosen = torch.full((3, TOP_K), 0.5), torch.tensor([[0, 1], [1, 2], [3, 0]])
    x = torch.randn(3, DIM)
    out = experts(x, weights, chosen)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), make_experts()(x, weights, chosen), atol=3e-2, rtol=0)
