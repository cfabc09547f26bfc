"""A prepared model is the same model: its numbers, its names, its memory, whatever else is done with it."""

import copy
import gc
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from modelwright.engine import prepare as room
from modelwright.engine.prepare import prepare
from modelwright.families.deepseek_vl2.config import VisionEncoderConfig
from modelwright.families.deepseek_vl2.siglip import VisionTower
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.layers import Experts
from modelwright.ops.backends import cpu as kernels
from tests.engine.engines import check_served, expected
from tests.engine.test_runner import FAMILIES, model_of, within
from tests.fakes import MOE, VARIANTS, tiny_v2, tokens
from tests.llamas import HUGGING_FACE, MINDFORMERS, tiny_llama

compiled = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
PROMPT = tuple(tokens(9).tolist())


def language(model):
    """The part that reads tokens."""
    return getattr(model, "language", model)


@torch.no_grad()
def logits_of(model, length=7):
    """The last logits of a short prompt, all at once, then of one token after its past."""
    family = "imagegpt" if isinstance(model.config, ImageGPTConfig) else ""
    ids = torch.tensor([within(family, PROMPT)[:length]])
    past = language(model)(ids, use_cache=True)
    last = language(model)(ids[:, :1], past_key_values=past.past_key_values)
    return torch.cat((past.logits, last.logits), dim=1).float()


def storages(model):
    """Where each tensor of the state lies."""
    return {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}


def bytes_of_all_tensors():
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, nn.Parameter) and not each.is_meta]
    found = [each.untyped_storage() for each in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_same(family, dtype):
    model = copy.deepcopy(model_of(family)).to(dtype)
    plain = logits_of(model)
    handle = prepare(model)
    bound = 1e-5 if dtype == torch.float32 else 2**-6  # of the largest: roundings of bf16 pass through two layers
    torch.testing.assert_close(logits_of(model), plain, rtol=0, atol=bound * float(plain.abs().max()))
    handle.undo()
    assert torch.equal(logits_of(model), plain)


@compiled
@pytest.mark.parametrize("family", ["moe", "mha", "llama", "llama, experts", "vl2"])
def test_an_engine_on_a_prepared_model_serves_what_generate_gives(family):
    model = copy.deepcopy(model_of(family))
    wanted = expected(model, PROMPT, 5)
    prepare(model)
    assert expected(model, PROMPT, 5).tokens == wanted.tokens
    check_served(model, [PROMPT, PROMPT[::-1]])


@compiled
@pytest.mark.parametrize("family", ["moe", "mha", "llama, experts"])
def test_neither_names_nor_memory_change(family, tmp_path):
    model = copy.deepcopy(model_of(family))
    names, places, before = [*model.state_dict()], storages(model), bytes_of_all_tensors()
    handle = prepare(model)
    logits_of(model)
    assert handle.changes
    assert [*model.state_dict()] == names and storages(model) == places
    assert bytes_of_all_tensors() <= before + 4096  # an intermediate that a cache of torch keeps, but no weight
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits_of(again), logits_of(model_of(family)))


@compiled
def test_what_a_model_has_of_its_own_comes_back():
    model = tiny_v2()
    before = [set(module.__dict__) for module in model.modules()]
    first, second = prepare(model), prepare(model)
    assert first.changes and not second.changes
    second.undo()
    assert [set(module.__dict__) for module in model.modules()] != before
    first.undo()
    first.undo()
    assert [set(module.__dict__) for module in model.modules()] == before


@compiled
def test_a_copy_of_a_prepared_model_has_weights_of_its_own():
    model = tiny_llama(base=HUGGING_FACE)
    prepare(model)
    plain = logits_of(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not logits_of(other).any()
    assert torch.equal(logits_of(model), plain)


@compiled
def test_new_weights_and_new_types_are_followed():
    model, other = tiny_llama(base=HUGGING_FACE), tiny_llama(base=HUGGING_FACE, seed=1)
    prepare(model)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(logits_of(model), logits_of(other), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits_of(model.double()), logits_of(other.double()))


@compiled
def test_a_prepared_model_still_learns():
    model, plain = tiny_v2(), tiny_v2()
    prepare(model)
    ids = tokens(2, 6)
    for each in (model, plain):
        each(ids, labels=ids).loss.backward()
    for (name, mine), own in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, own.grad, msg=name)


class Adapter(nn.Module):
    """A layer and something on top of it, as adapters are."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base

    def forward(self, x):
        return self.base_layer(x) + x.sum(dim=-1, keepdim=True)


@compiled
@pytest.mark.parametrize("comes_first", [True, False])
@pytest.mark.parametrize("name", ["k_proj", "up_proj", "down_proj"])
def test_adapters_are_heeded_before_and_after(name, comes_first):
    plain, model = tiny_llama(base=HUGGING_FACE), tiny_llama(base=HUGGING_FACE)
    for each in (plain, model):
        if each is model and not comes_first:
            prepare(each)
        layer = each.model.layers[0]
        home = layer.self_attn if name == "k_proj" else layer.mlp
        setattr(home, name, Adapter(getattr(home, name)))
    if comes_first:
        prepare(model)
    torch.testing.assert_close(logits_of(model), logits_of(plain), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits_of(plain), logits_of(tiny_llama(base=HUGGING_FACE)))


@compiled
def test_hooks_on_joined_projections_are_called():
    model, seen = tiny_llama(base=HUGGING_FACE), []
    prepare(model)
    model.model.layers[0].self_attn.v_proj.register_forward_hook(lambda *_: seen.append("v"))
    model.model.layers[1].mlp.gate_proj.register_forward_pre_hook(lambda *_: seen.append("gate"))
    logits_of(model)
    assert seen == ["v", "gate"] * 2


@compiled
def test_a_method_that_stands_in_already_is_left():
    model = tiny_llama(base=HUGGING_FACE)
    layer = model.model.layers[0].mlp.down_proj
    layer.forward = lambda x: torch.zeros(*x.shape[:-1], 32)
    handle = prepare(model)
    assert (layer, "forward") not in handle.changes
    handle.undo()
    assert not layer(torch.ones(1, 48)).any()


class Strange(nn.Parameter):
    """A weight that is not multiplied as its numbers lie, as quantised ones are not."""


@compiled
def test_weights_of_other_kinds_are_left_to_torch(monkeypatch):
    model = tiny_v2(base=MOE)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.weight = Strange(module.weight.data)
        if isinstance(module, Experts):
            module.down_proj = Strange(module.down_proj.data)
    prepare(model)
    monkeypatch.setattr(kernels, "linears", None)
    monkeypatch.setattr(kernels, "experts", None)
    wanted = logits_of(tiny_v2(base=MOE))  # an unknown kv_b is never absorbed, which adds in another order
    torch.testing.assert_close(logits_of(model), wanted, rtol=1e-5, atol=1e-5)


@compiled
@pytest.mark.parametrize("fields", [{"hidden_act": "gelu"}, {"gated_mlp": False}])
def test_experts_that_the_kernel_does_not_compute_are_left(monkeypatch, fields):
    model = tiny_v2(base=MOE, **fields)
    plain = logits_of(model)
    prepare(model)
    monkeypatch.setattr(kernels, "experts", None)
    torch.testing.assert_close(logits_of(model), plain, rtol=1e-5, atol=1e-5)


@compiled
def test_experts_and_layers_do_run_by_the_kernels(monkeypatch):
    model, called = tiny_v2(base=VARIANTS["mha"]), []
    prepare(model)
    for name in ("linears", "experts"):
        kernel = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, name=name, kernel=kernel: called.append(name) or kernel(*a))
    logits_of(model)
    # twice: q, k, v in one; o; gate, up in one; down, of the dense and of the shared feed-forward; and the head
    assert called.count("linears") == 2 * (2 * 4 + 1) and called.count("experts") == 2


@compiled
def test_a_layer_that_computes_in_its_weights_type_is_served(monkeypatch):
    mixed = {"compute_dtype": "bfloat16", "param_init_type": "bfloat16", "embedding_init_type": "float32"}
    model, called = tiny_llama(base=MINDFORMERS | mixed), []
    plain = logits_of(model)
    handle = prepare(model)
    assert any(isinstance(module.__dict__[name], room.FewRowsCastLinear) for module, name in handle.changes)
    kernel = kernels.linears
    monkeypatch.setattr(kernels, "linears", lambda *a: called.append(a) or kernel(*a))
    torch.testing.assert_close(logits_of(model), plain, rtol=0, atol=2**-6 * float(plain.abs().max()))
    assert called


def test_without_kernels_nothing_changes():
    script = (
        "from modelwright.engine.prepare import prepare; from tests.fakes import tiny_v2\n"
        "model = tiny_v2(); print(prepare(model).changes)"
    )
    environment = os.environ | {"MODELWRIGHT_KERNELS": "0"}
    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == "()\n"


@compiled
@torch.no_grad()
def test_a_tower_attends_by_the_kernel(monkeypatch):
    tower = (
        VisionTower(VisionEncoderConfig(image_size=70, patch_size=14, layers=2, width=64, heads=4)).bfloat16().eval()
    )
    pictures, called = torch.randn(2, 3, 70, 70).bfloat16(), []
    plain = tower(pictures)
    handle = prepare(tower)
    kernel = kernels.prefill
    monkeypatch.setattr(kernels, "prefill", lambda *a, **k: called.append(a) or kernel(*a, **k))
    torch.testing.assert_close(tower(pictures), plain, rtol=0, atol=2**-6 * float(plain.abs().max()))
    q = torch.zeros(2, 4, 25, 16, dtype=torch.bfloat16)
    assert len(called) == (2 if kernels.serves_prefill(q, q, q) else 0)
    handle.undo()
    assert torch.equal(tower(pictures), plain)
