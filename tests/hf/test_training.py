"""Training: gradients through every part, the balance loss in its right size, the bias rule, and low precision."""

import pytest
import torch
import torch.nn.functional as F

from modelwright.errors import RequestError
from modelwright.families.deepseek_v2.model import DeepseekV2ForSequenceClassification
from tests.fakes import DENSE, GROUPED, MHA, MOE, NOAUX, recompute_layers, tiny_v2, tiny_vl2, tokens, vl2_inputs

METHODS = {"greedy": MOE, "grouped": GROUPED, "noaux": NOAUX}
TRAINED = METHODS | {"dense": DENSE, "mha": MHA, "plain": MOE | {"gated_mlp": False}}
close = torch.testing.assert_close


def gradients(model, *args, loss=lambda result: result.loss, **kwargs):
    model.zero_grad()
    loss(model(*args, **kwargs)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def chosen_everywhere(model, ids):
    """Whether every expert of every layer got a token of ``ids``."""
    loads = []
    hooks = [
        module.register_forward_hook(lambda _, __, routing: loads.append(routing.load()))
        for name, module in model.named_modules()
        if name.endswith("mlp.gate")
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    return all(bool((load > 0).all()) for load in loads)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("base", TRAINED.values(), ids=TRAINED)
def test_every_parameter_gets_a_gradient(base, training):
    model, ids = tiny_v2(base=base).train(training), tokens(4, 24)
    assert chosen_everywhere(model, ids)
    found = gradients(model, ids, labels=ids)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, gradient in found.items():
        rows = gradient.flatten(1) if gradient.dim() == 3 else gradient.flatten()[None]
        assert (rows.abs().amax(dim=1) > 0).all(), name  # each expert of a stack for itself


@pytest.mark.parametrize("training", [True, False])
def test_every_part_of_a_vision_language_model_gets_a_gradient(training):
    model, inputs = tiny_vl2().train(training), vl2_inputs([[(2, 1), (1, 1)], [(1, 2)]], words=8)
    found = gradients(model, **inputs, labels=inputs["input_ids"])
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, gradient in found.items():
        assert gradient.abs().max() > 0, name


def test_gradients_in_eval_mode_are_those_of_training_without_the_balance_loss():
    model, ids = tiny_v2(aux_loss_alpha=0.0), tokens(2, 8)
    evaluated = gradients(model, ids, labels=ids)
    trained = gradients(model.train(), ids, labels=ids)
    for name in trained:
        close(evaluated[name], trained[name])


# The balance loss


def balance_by_hand(model, ids, per_sequence):
    """The unscaled balance loss of the fakes' one layer of experts, from its router's own probabilities."""
    routings = []
    hook = model.model.layers[1].mlp.gate.register_forward_hook(lambda _, __, routing: routings.append(routing))
    model(ids)
    hook.remove()
    scores, chosen = routings[0].scores, routings[0].chosen
    groups = len(ids) if per_sequence else 1
    losses = []
    for own_scores, own_chosen in zip(scores.chunk(groups), chosen.chunk(groups), strict=True):
        share = torch.bincount(own_chosen.flatten(), minlength=8) / own_chosen.numel() * 8
        losses.append((share * own_scores.mean(0)).sum())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("per_sequence", [True, False])
def test_the_balance_loss_is_alpha_times_its_formula(per_sequence):
    model, ids = tiny_v2(seq_aux=per_sequence, aux_loss_alpha=0.25).train(), tokens(3, 7)
    result = model(ids, labels=ids)
    close(result.aux_loss, 0.25 * balance_by_hand(model, ids, per_sequence))
    language = F.cross_entropy(result.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    close(result.loss - result.aux_loss, language)


def test_alpha_scales_the_balance_gradient():
    found = {}
    for alpha in (0.0, 0.5, 1.0):
        model, ids = tiny_v2(aux_loss_alpha=alpha).train(), tokens(2, 8)
        found[alpha] = gradients(model, ids, labels=ids)["model.layers.1.mlp.gate.weight"]
    once, twice = found[0.5] - found[0.0], found[1.0] - found[0.0]
    assert once.abs().max() > 1e-4
    close(twice, 2 * once, atol=1e-6, rtol=1e-3)


def test_alpha_zero_reports_no_balance_loss():
    assert tiny_v2(aux_loss_alpha=0.0).train()(tokens(1, 4), labels=tokens(1, 4)).aux_loss is None


def test_scaling_the_loss_scales_every_gradient():
    model, ids = tiny_v2(aux_loss_alpha=1.0).train(), tokens(2, 8)
    whole = gradients(model, ids, labels=ids)
    half = gradients(model, ids, labels=ids, loss=lambda result: result.loss * 0.5)
    for name in whole:
        close(half[name], whole[name] * 0.5)


def test_a_classifier_and_a_vision_language_model_report_it_too():
    classifier = tiny_v2(DeepseekV2ForSequenceClassification, num_labels=2).train()
    result = classifier(tokens(2, 5), labels=torch.tensor([0, 1]))
    close(result.loss - result.aux_loss, F.cross_entropy(result.logits, torch.tensor([0, 1])))
    inputs = vl2_inputs([[(1, 1)]])
    assert tiny_vl2().train()(**inputs, labels=inputs["input_ids"]).aux_loss > 0


# noaux_tc's bias


def biased(rate=0.125, **fields):
    return tiny_v2(base=NOAUX, topk_bias_update_rate=rate, aux_loss_alpha=0.0, **fields).train()


def gate_of(model):
    return model.model.layers[1].mlp.gate


def test_the_bias_moves_against_the_load():
    model, ids = biased(), tokens(2, 10)
    model(ids)
    load = gate_of(model).load.clone()
    assert load.sum() == 20 * 2
    model.update_router_bias()
    assert torch.equal(gate_of(model).e_score_correction_bias, 0.125 * torch.sign(5.0 - load))
    assert gate_of(model).load.sum() == 0
    model.update_router_bias()  # nothing was seen since
    assert torch.equal(gate_of(model).e_score_correction_bias, 0.125 * torch.sign(5.0 - load))


def test_loads_add_up_over_the_passes_of_one_step():
    model, first, second = biased(), tokens(2, 6), tokens(2, 6, seed=1)
    loads = []
    for ids in (first, second):
        model(ids)
        loads.append(gate_of(model).load.clone())
        gate_of(model).load.zero_()
    model(first)
    model(second)
    assert torch.equal(gate_of(model).load, loads[0] + loads[1])


def test_the_optimizer_can_carry_the_rule():
    model, ids = biased(), tokens(2, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = model.update_router_bias_with(optimizer)
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
    load = gate_of(model).load.clone()
    optimizer.step()
    assert torch.equal(gate_of(model).e_score_correction_bias, 0.125 * torch.sign(10.0 - load))
    handle.remove()
    model(ids)
    optimizer.step()
    assert gate_of(model).load.sum() == 40


def test_the_rule_evens_the_load_out():
    model, ids = biased(rate=0.02), tokens(8, 16)
    spreads = []
    for _ in range(60):
        model(ids)
        spreads.append(float(gate_of(model).load.float().std()))
        model.update_router_bias()
    assert spreads[-1] < spreads[0] / 3


def test_nothing_is_counted_in_evaluation_and_rate_zero_moves_nothing():
    model = biased(rate=0.0)
    model.eval()(tokens(1, 5))
    assert gate_of(model).load.sum() == 0
    model.train()(tokens(1, 5))
    model.update_router_bias()
    assert gate_of(model).e_score_correction_bias.abs().sum() == 0
    assert gate_of(model).load.sum() == 0


def test_the_bias_is_saved_and_the_load_is_not():
    names = set(biased().state_dict())
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in names
    assert not [name for name in names if name.endswith("load")]


# Gradient checkpointing


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("base", [MOE, NOAUX, MHA], ids=["latent", "noaux", "mha"])
def test_gradient_checkpointing_changes_no_gradient(base, reentrant):
    model, ids = tiny_v2(base=base, aux_loss_alpha=0.5).train(), tokens(2, 8)
    plain = gradients(model, ids, labels=ids)
    load = gate_of(model).load.clone() if base is NOAUX else None
    recompute_layers(model, {"use_reentrant": reentrant})
    again = gradients(model, ids, labels=ids)
    assert again.keys() == plain.keys()
    for name in plain:
        close(again[name], plain[name])
    if load is not None:
        assert torch.equal(gate_of(model).load, 2 * load)  # recomputing counts nothing twice


def test_gradient_checkpointing_reaches_the_tower():
    model, inputs = tiny_vl2(vision={"use_checkpoint": True}).train(), vl2_inputs([[(1, 1)]])
    plain = gradients(model, **inputs, labels=inputs["input_ids"])
    recompute_layers(model)
    again = gradients(model, **inputs, labels=inputs["input_ids"])
    for name in plain:
        close(again[name], plain[name])


def test_gradient_checkpointing_keeps_no_cache_and_continues_none():
    model, cache = tiny_v2(), tiny_v2()(tokens(1, 3)).past_key_values
    recompute_layers(model)
    assert model.train()(tokens(1, 3)).past_key_values is None
    with pytest.raises(RequestError, match="gradient checkpointing recomputes layers"):
        model(tokens(1, 3), past_key_values=cache)
    assert model.eval()(tokens(1, 3)).past_key_values is not None


# Precision, dropout, slices, ranks


@pytest.mark.parametrize("base", METHODS.values(), ids=METHODS)
def test_autocast_trains(base):
    model, ids = tiny_v2(base=base).train(), tokens(2, 8)
    exact = model(ids, labels=ids).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    close(loss, exact, atol=0.1, rtol=0.05)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("base", METHODS.values(), ids=METHODS)
def test_half_precision_trains(base, dtype):
    model, ids = tiny_v2(base=base).train(), tokens(2, 8)
    exact = model(ids, labels=ids).loss
    loss = model.to(dtype)(ids, labels=ids).loss
    loss.backward()
    close(loss.float(), exact, atol=0.1, rtol=0.05)
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pictures_in_half_precision(dtype):
    model, inputs = tiny_vl2().train(), vl2_inputs([[(2, 1)], []])
    loss = model.to(dtype)(**inputs, labels=inputs["input_ids"]).loss  # pictures still come in fp32
    loss.backward()
    assert loss.isfinite()
    assert model.vision.pos_embed.grad.abs().max() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert tiny_vl2().train()(**inputs, labels=inputs["input_ids"]).loss.isfinite()


@pytest.mark.parametrize("field", ["ffn_dropout", "attention_dropout"])
@pytest.mark.parametrize("base", [MOE, MHA], ids=["latent", "mha"])
def test_dropout_acts_in_training_only_and_follows_the_seed(field, base):
    model, ids = tiny_v2(base=base, **{field: 0.5}), tokens(1, 8)

    def logits(seed):
        torch.manual_seed(seed)
        return model(ids).logits

    assert torch.equal(logits(1), tiny_v2(base=base)(ids).logits)
    model.train()
    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


@pytest.mark.parametrize("base", [DENSE, MOE, MHA | {"attention_bias": True}], ids=["dense", "moe", "mha"])
def test_slices_of_pretraining_change_only_the_rounding(base):
    plain, sliced = tiny_v2(base=base), tiny_v2(base=base, pretraining_tp=4)
    sliced.load_state_dict(plain.state_dict())
    close(sliced(tokens(2, 7)).logits, plain(tokens(2, 7)).logits, atol=1e-5, rtol=1e-5)
    assert type(sliced.lm_head).__name__ == "ColumnSlicedLinear"
