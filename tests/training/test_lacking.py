"""Training in a type of which the processor has no products: torch makes none of them on any road, and kept or computed
again, moved to the host or not, the numbers are the same."""

import copy

import pytest
import torch
from torch.testing import assert_close as close

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.dispatch import KernelAwareMode
from tests.fakes import tokens
from tests.training.learners import MODELS, learner_of, rows_of, step_batch, weights_of
from tests.training.tuning.test_integers import pair_of

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "dot", "_grouped_mm", "convolution", "convolution_backward"}
GRADIENTS = {"_scaled_dot_product_flash_attention_for_cpu_backward"}
"""Of torch's attention the forward pass alone is as fast as in fp32."""
BF16 = {"compute": "bfloat16"}


@pytest.fixture
def lacking(monkeypatch):
    """A processor that lacks products of low types, whatever this one is."""
    monkeypatch.setattr(kernels, "torch_lacks", lambda dtype: dtype in (torch.bfloat16, torch.float16))


class Products(KernelAwareMode):
    """Names torch's products of low types as they are made."""

    def __init__(self):
        super().__init__()
        self.made, self.ours = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        low = any(isinstance(each, torch.Tensor) and each.dtype in (torch.bfloat16, torch.float16) for each in args)
        if low and func.namespace == "modelwright":
            self.ours.append(packet.__name__)
        elif low and packet.__name__ in PRODUCTS | GRADIENTS:
            self.made.append((packet.__name__, [list(each.shape) for each in args if isinstance(each, torch.Tensor)]))
        return func(*args, **(kwargs or {}))


ROADS = {
    "copies": {"precision": BF16},
    "autocast": {"precision": BF16 | {"autocast": True}},
    "fp16": {"precision": {"compute": "float16"}},
    "lora": {"precision": BF16, "tune": {"lora": {"rank": 4}}},
    "selective": {"precision": BF16, "recompute": "selective"},
}


@pytest.mark.one_in(3)
@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", MODELS)
def test_torch_makes_no_product_of_a_step(name, road):
    learner = learner_of(MODELS[name](), **ROADS[road])
    with Products() as products:
        learner.step_on(1, step_batch(rows_of(learner.model, 4), 2))
    assert not products.made and "product" in products.ours


@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_torch_makes_no_product_of_a_loss_and_its_gradients(name, autocast):
    """As transformers' trainer and plain loops ask for them."""
    model = MODELS[name]().train().to(torch.float32 if autocast else torch.bfloat16)
    row = rows_of(model, 2)[1]
    row = {key: part if autocast or not part.is_floating_point() else part.bfloat16() for key, part in row.items()}
    with Products() as products:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**row).loss
        loss.backward()
    assert not products.made and "product" in products.ours
    assert all(each.grad is None or each.grad.dtype == each.dtype for each in model.parameters())


@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize("method", ["int8", "int4"])
def test_torch_makes_no_product_beside_weights_in_integers(method):
    model = pair_of("v2", method)[0].train().bfloat16()
    ids = tokens(2, 9)
    with Products() as products:
        model(input_ids=ids, labels=ids).loss.backward()
    assert not products.made and "product" in products.ours


@pytest.mark.usefixtures("lacking")
def test_selective_recomputing_keeps_them():
    """As it does torch's own: products, experts and attention run as often as without."""
    counts = {}
    for how in ("none", "selective", "full"):
        learner = learner_of(MODELS["steered"](), precision=BF16, recompute=how)
        with Products() as products:
            learner.step_on(1, step_batch(rows_of(learner.model, 2), 2))
        counts[how] = {each: products.ours.count(each) for each in ("product", "grouped_linear", "trained_attention")}
    assert all(counts["none"].values()) and counts["selective"] == counts["none"]
    assert all(counts["full"][each] > count for each, count in counts["none"].items())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_fp32_to_what_the_type_rounds(monkeypatch, name):
    """And no further from them than torch's own."""
    exact = MODELS[name]().eval().bfloat16().float()
    row = rows_of(exact, 2)[1]
    exact(**row).loss.backward()
    off = {}
    for lacks in (True, False):
        monkeypatch.setattr(kernels, "torch_lacks", lambda dtype, lacks=lacks: lacks)
        model = copy.deepcopy(exact).bfloat16()
        model.zero_grad()
        low = {key: part.bfloat16() if part.is_floating_point() else part for key, part in row.items()}
        loss = model(**low).loss
        close(loss.float(), exact(**row).loss, atol=0.02, rtol=0.02)
        loss.backward()
        pairs = zip(model.parameters(), exact.parameters(), strict=True)
        both = [(own.grad.float() - true.grad, true.grad) for own, true in pairs if own.grad is not None]
        off[lacks] = sum(d.square().sum() for d, _ in both).sqrt() / sum(t.square().sum() for _, t in both).sqrt()
    assert off[True] <= max(1.2 * off[False], 0.02), off


KEPT = [{"recompute": "full"}, {"recompute": "selective"}, {"swap": {}}, {"recompute": {"save": ["norm", "topk"]}}]


@pytest.mark.one_in(3)
@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["steered", "vl2", "imagegpt"])
def test_what_is_kept_changes_no_bit(name, autocast):
    precision, found = BF16 | {"autocast": autocast}, []
    for how in ({}, *KEPT):
        learner = learner_of(MODELS[name](), precision=precision, deterministic=True, **how)
        batch = step_batch(rows_of(learner.model, 4), 2)
        losses = [learner.step_on(step, batch).loss for step in (1, 2)]
        found.append((losses, weights_of(learner)))
    for losses, weights in found[1:]:
        assert losses == found[0][0]
        assert all(torch.equal(weights[key], own) for key, own in found[0][1].items())
