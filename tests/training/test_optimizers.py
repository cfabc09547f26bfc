"""Optimizers against their papers' formulas, what each parameter gets of decay and rate, and their state by name."""

import math

import pytest
import torch
from torch import nn

from modelwright.configs.run import OptimizerPart
from modelwright.configs.run.model import LoraPart, TunePart
from modelwright.training.optimizers import Optimizers, Steered, kinds_of
from modelwright.training.tuning import settle
from tests.training.learners import MODELS, learner_of, rows_of, step_batch, weights_of

close = torch.testing.assert_close
LR, DECAY, EPS = 0.01, 0.1, 1e-8


def adam(w, gs, decoupled):
    m = v = 0
    for t, g in enumerate(gs, 1):
        if decoupled:
            w = w * (1 - LR * DECAY)
        else:
            g = g + DECAY * w
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        w = w - LR * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + EPS)
    return w


def sgd(w, gs):
    m = None
    for g in gs:
        g = g + DECAY * w
        m = g if m is None else 0.8 * m + g
        w = w - LR * m
    return w


def adagrad(w, gs):
    total = 0
    for g in gs:
        g = g + DECAY * w
        total = total + g * g
        w = w - LR * g / (total.sqrt() + EPS)
    return w


def lion(w, gs):
    m = torch.zeros_like(w)
    for g in gs:
        w = w * (1 - LR * DECAY) - LR * (0.9 * m + 0.1 * g).sign()
        m = 0.95 * m + 0.05 * g
    return w


def adafactor(w, gs):
    """arXiv:1804.04235, algorithm 4, on a matrix; torch's constants."""
    rows = columns = 0
    for t, g in enumerate(gs, 1):
        share = 1 - t**-0.8
        rate = max(1e-3, float(w.norm() / w.numel() ** 0.5)) * min(LR, 1 / math.sqrt(t))
        rows = share * rows + (1 - share) * (g * g).mean(dim=1, keepdim=True)
        columns = share * columns + (1 - share) * (g * g).mean(dim=0, keepdim=True)
        update = g / (rows @ columns / rows.mean()).sqrt()
        w = w * (1 - LR * DECAY)
        w = w - rate * update / max(1.0, float(update.norm() / w.numel() ** 0.5))
    return w


FORMULAS = {
    "adamw": ({}, lambda w, gs: adam(w, gs, True)),
    "adamw, not fused": ({"fused": False}, lambda w, gs: adam(w, gs, True)),
    "adam": ({}, lambda w, gs: adam(w, gs, False)),
    "sgd": ({"momentum": 0.8}, sgd),
    "adagrad": ({}, adagrad),
    "lion": ({}, lion),
    "adafactor": ({}, adafactor),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_an_optimizer_is_its_formula(name):
    fields, formula = FORMULAS[name]
    torch.manual_seed(0)
    weight, gradients = nn.Parameter(torch.randn(6, 5)), [torch.randn(6, 5) for _ in range(4)]
    wanted = formula(weight.detach().double(), [g.double() for g in gradients])
    part = OptimizerPart(name=name.partition(",")[0], lr=LR, weight_decay=DECAY, betas=(0.9, 0.95), eps=EPS, **fields)
    optimizers = Optimizers(part, [Steered("w", weight, "dense", None, True, True)])
    optimizers.begin()
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizers.step()
    close(weight.detach().double(), wanted, atol=2e-7, rtol=2e-6)


def test_fused_foreach_and_plain_are_one():
    found = []
    for fused in (True, False, "auto", None):
        generator = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(size, 5, generator=generator)) for size in (3, 8)]
        part = OptimizerPart(lr=LR, weight_decay=DECAY, fused="auto" if fused is None else fused)
        optimizers = Optimizers(part, [Steered(str(i), w, "dense", None, True, True) for i, w in enumerate(weights)])
        if fused is None:
            optimizers.all = [torch.optim.AdamW(weights, LR, part.betas, part.eps, DECAY, foreach=False, fused=False)]
        for _ in range(5):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizers.step()
        found.append([weight.detach().clone() for weight in weights])
    for other in found[1:]:
        close(other, found[0], atol=1e-7, rtol=1e-6)


def test_muon_steps_hidden_matrices_and_adamw_the_rest():
    learner = learner_of(MODELS["latent"](), optimizer={"name": "muon", "lr": 1e-2})
    muon, adamw = learner.optimizers.all
    names = learner.optimizers.names
    hidden = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert hidden | rest == set(learner.weights.masters) and not hidden & rest
    assert "model.layers.0.self_attn.o_proj.weight" in hidden
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.gate.weight"} <= rest
    assert "model.layers.1.mlp.experts.down_proj" in rest and "model.norm.weight" in rest
    assert learner.optimizers.set_rate(1e-2)["attention"] == 1e-2


def test_a_pair_of_lora_beside_the_head_is_no_hidden_matrix():
    model = MODELS["llama"]()
    settle(model, TunePart(lora=LoraPart(rank=2, targets=("attention", "head"), exclude=("gate",))))
    pairs = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    beside_head = {"lm_head.lora.weight.A", "lm_head.lora.weight.B"}
    decaying, hidden = kinds_of(model)
    assert hidden & pairs == pairs - beside_head and beside_head <= pairs <= decaying


@pytest.mark.parametrize("decay", ["matrices", "matrices_and_routers", "all", "none"])
@pytest.mark.parametrize("name", MODELS)
def test_what_decays(name, decay):
    """By what a step without gradients does to each parameter."""
    model = MODELS[name]()
    learner = learner_of(model, optimizer={"lr": 0.1, "weight_decay": 0.5, "decay": decay})
    before = weights_of(learner)
    for each in learner.steered:
        each.weight.grad = torch.zeros_like(each.weight)
    learner.optimizers.set_rate(0.1)
    learner.optimizers.step()
    decaying, hidden = kinds_of(model)
    for key, weight in learner.weights.masters.items():
        matrix, router = weight.dim() >= 2, key.endswith("gate.weight")
        shrinks = {"all": True, "none": False, "matrices_and_routers": matrix, "matrices": matrix and not router}[decay]
        close(weight.detach(), before[key] * (0.95 if shrinks else 1.0), atol=1e-7, rtol=1e-6)
        assert (key in decaying) == (matrix and not router)
    assert hidden < decaying


def test_parts_have_rates_of_their_own():
    learner = learner_of(
        MODELS["vl2"](), tune={"freeze": ["vision"], "rates": {"projector": 1e-3}}, schedule={"name": "linear"}
    )
    before = {name: weight.clone() for name, weight in learner.model.named_parameters()}
    result = learner.step_on(5, step_batch(rows_of(learner.model, 2), 2))
    share = 1 - 5 / 20
    assert result.rates["projector"] == pytest.approx(1e-3 * share)
    assert result.rates["attention"] == pytest.approx(1e-2 * share)
    assert "vision" not in result.rates and "vision" not in result.norms
    for name, weight in learner.model.named_parameters():
        assert torch.equal(weight, before[name]) == name.startswith("vision."), name


def test_the_norm_is_that_of_all_gradients_and_clipping_is_torchs():
    found = []
    for clip in (None, 1e-3):
        plain = {"optimizer": {"name": "sgd", "lr": 1.0, "weight_decay": 0}, "schedule": {"name": "constant"}}
        learner = learner_of(MODELS["latent"](), **plain, clip=clip)
        before = weights_of(learner)
        result = learner.step_on(1, step_batch(rows_of(learner.model, 2), 2))
        moved = {name: before[name] - weight for name, weight in weights_of(learner).items()}
        found.append((result, moved))
    (whole, gradients), (_, clipped) = found
    exact = torch.cat([g.flatten().double() for g in gradients.values()]).norm()
    assert whole.norm == pytest.approx(float(exact), rel=1e-4)
    assert sum(norm**2 for norm in whole.norms.values()) == pytest.approx(whole.norm**2)
    short = torch.cat([g.flatten().double() for g in clipped.values()]).norm()
    assert float(short) == pytest.approx(1e-3, rel=2e-2)  # of weights near one, that is what fp32 leaves of it
