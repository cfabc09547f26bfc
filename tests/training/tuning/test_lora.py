"""LoRA of our own against peft's layers on the same model, and against ``W + scale * B @ A`` built by hand."""

import copy
from functools import partial

import peft
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.checkpoint import checkpoint

from modelwright import Engine, SamplingParams
from modelwright.configs.run import TunePart
from modelwright.errors import ConfigError
from modelwright.layers.bare import bare_weight
from modelwright.layers.checkpointed import CheckpointedLayer
from modelwright.layers.lora import LowRank
from modelwright.training.tuning import add_lora, lora_of, merge, parts_of, save_adapter, settle
from tests.fakes import DENSE, tiny_v2, tiny_vl2, tokens
from tests.training.tuning.tunes import MODELS, Lora, inputs, logits, near, tuned

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # peft's, on patterns


QUICK = {"v2", "llama", "mindformers fused", "imagegpt"}
"""The models whose gradients are compared with peft's in quick tests; the others' in slow ones."""


def summed(model, base):
    """The base with every weight ``W + scale * B @ A``, expert by expert."""
    dense, state = copy.deepcopy(base), base.state_dict()
    for name, pair in lora_of(model).items():
        weight = state[name].clone()
        if weight.dim() == 3:
            for expert in range(len(weight)):
                weight[expert] += pair.scale * pair.B[expert].detach() @ pair.A[expert].detach()
        else:
            delta = pair.scale * pair.B.detach() @ pair.A.detach()
            weight += delta.t() if "c_" in name else delta  # ImageGPT's projections lie the other way round
        state[name] = weight
    dense.load_state_dict(state)
    return dense


@pytest.mark.parametrize("name", MODELS)
def test_a_pair_adds_its_product(name):
    model, base = tuned(name)
    given = inputs(name, 2, 9)
    wanted = logits(summed(model, base), given)
    assert near(logits(model, given), wanted, 1e-6) or (logits(model, given) - wanted).abs().max() < 1e-5
    assert not near(logits(base, given), wanted, 1e-3)
    own = dict(model.named_parameters())
    assert {key for key in own if ".lora." not in key} == dict(base.named_parameters()).keys()
    assert all(own[key].requires_grad == (".lora." in key) for key in own)


@pytest.mark.parametrize("name", MODELS)
def test_begins_as_the_model_was(name):
    base = MODELS[name]()
    model = copy.deepcopy(base)
    settle(model, TunePart(lora=Lora()))
    given = inputs(name, 2, 9)
    assert torch.equal(model(**given).logits, base(**given).logits)  # as in training: kernels round otherwise
    for key, pair in lora_of(model).items():
        bound = pair.A.shape[-1] ** -0.5
        assert not pair.B.any() and 0.8 * bound < pair.A.abs().max() <= bound, key


def test_first_numbers_depend_on_name_and_seed_alone():
    few, all_, other = (MODELS["v2"]() for _ in range(3))
    add_lora(few, Lora(targets=("experts",)), seed=3)
    add_lora(all_, Lora(), seed=3)
    add_lora(other, Lora(), seed=4)
    for key, pair in lora_of(few).items():
        assert torch.equal(pair.A, lora_of(all_)[key].A) and not torch.equal(pair.A, lora_of(other)[key].A)
    assert len({float(pair.A.flatten()[0]) for pair in lora_of(all_).values()}) == len(lora_of(all_))


def as_peft(model, folder, name):
    """What peft calls the tensors of ``model``'s pairs; ``name`` is of the numbers: ``data`` or ``grad``."""
    shown = copy.deepcopy(model)
    with torch.no_grad():
        for pair, own in zip(lora_of(shown).values(), lora_of(model).values(), strict=True):
            pair.A.copy_(getattr(own.A, name)), pair.B.copy_(getattr(own.B, name))
    save_adapter(shown, folder)
    return load_file(folder / "adapter_model.safetensors")


def of_peft(adapted, name):
    named = {key: value for key, value in adapted.named_parameters() if ".lora_" in key}
    return {key.replace(".default.", "."): getattr(value, name).detach().clone() for key, value in named.items()}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_gradients_and_steps_are_those_of_peft(name, tmp_path):
    model, base = tuned(name)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
    given = inputs(name, 2, 9)
    assert near(logits(theirs, given), logits(model, given), 1e-6)
    optimizers = [  # with an eps above the noise of gradients that are all but 0, of which Adam takes the sign
        torch.optim.AdamW([each for each in one.parameters() if each.requires_grad], lr=1e-3, eps=1e-4)
        for one in (model, theirs)
    ]
    for step in range(5):
        for one, optimizer in zip((model, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            one.train()(**given).loss.backward()
        if step == 0:
            wanted = of_peft(theirs, "grad")
            found = as_peft(model, tmp_path / "grad", "grad")
            assert found.keys() == wanted.keys()
            for key, gradient in wanted.items():
                assert near(found[key], gradient, 1e-5) or (found[key] - gradient).abs().max() < 1e-8, key
        for optimizer in optimizers:
            optimizer.step()
    wanted = of_peft(theirs, "data")
    for key, tensor in as_peft(model, tmp_path / "data", "data").items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-4, atol=1e-6, msg=key)
    assert all(each.grad is None for key, each in model.named_parameters() if ".lora." not in key)


def test_dropout_falls_on_what_enters_a():
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 4, 8, generator=random), torch.randn(3, 6, 4, generator=random)
    x, base, counts = torch.randn(7, 8, generator=random), torch.randn(7, 6, generator=random), torch.tensor([2, 0, 5])
    stacked, single = LowRank(a, b, 0.5, dropout=0.4), LowRank(a[0], b[0], 0.5, dropout=0.4)
    torch.manual_seed(1)
    found = stacked.grouped(x, base, counts)
    torch.manual_seed(1)
    dropped = F.dropout(x, 0.4)
    wanted = base.clone()
    for row, expert in enumerate([0, 0, 2, 2, 2, 2, 2]):
        wanted[row] += 0.5 * b[expert] @ (a[expert] @ dropped[row])
    torch.testing.assert_close(found, wanted)
    torch.manual_seed(1)
    torch.testing.assert_close(single(x, base), base + 0.5 * dropped @ a[0].t() @ b[0].t())
    torch.testing.assert_close(single.eval()(x, base), base + 0.5 * x @ a[0].t() @ b[0].t())


def test_rslora_divides_by_the_root_of_the_rank():
    pairs = lora_of(tuned("v2", rslora=True)[0]).values()
    assert {pair.scale for pair in pairs} == {6 / 4**0.5} and {
        pair.scale for pair in lora_of(tuned("v2")[0]).values()
    } == {1.5}


def test_targets_and_what_is_excluded():
    def names(**lora):
        return set(lora_of(tuned("v2", **lora)[0]))

    assert all("self_attn" in each for each in names(targets=("attention",)))
    assert names(targets=("gate_up_proj",)) == {"model.layers.1.mlp.experts.gate_up_proj"}
    assert not any("kv_" in each for each in names(exclude=("kv_",)))
    assert any("lm_head" in each for each in names(targets=("head",), exclude=()))
    frozen = MODELS["v2"]()
    settle(frozen, TunePart(freeze=("attention",), lora=Lora()))
    assert not any("self_attn" in each for each in lora_of(frozen))
    sees = tiny_vl2()
    settle(sees, TunePart(train=("projector",), lora=Lora(targets=("attention", "vision"))))
    assert any(each.startswith("vision.blocks.0.attn.qkv") for each in lora_of(sees))
    assert all(sees.get_parameter(each).requires_grad for each in parts_of(sees)["projector"])


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        (TunePart(lora=Lora(targets=("atention",))), "did you mean attention"),
        (TunePart(lora=Lora(targets=("norms",))), "no layer of that part has a matrix"),
        (TunePart(lora=Lora(targets=("vision",))), "leaves nothing to adapt"),
        (TunePart(lora=Lora(), train=("attention",)), "whole or by LoRA, not both"),
        (TunePart(lora=Lora(), rates={"head": 1.0}), "nothing of that part trains"),
    ],
)
def test_what_lora_cannot_be_is_refused(tune, said):
    with pytest.raises(ConfigError, match=said):
        settle(MODELS["v2"](), tune)


def test_a_tied_head_and_a_second_lora_are_refused():
    tied = tiny_v2(base=DENSE | {"tie_word_embeddings": True})
    with pytest.raises(ConfigError, match="tied to the embedding"):
        settle(tied, TunePart(lora=Lora(targets=("head",), exclude=())))
    model, _ = tuned("v2")
    with pytest.raises(ConfigError, match="has LoRA already"):
        add_lora(model, Lora())


def test_attention_calls_the_layer_that_it_may_not_absorb():
    """Latent attention multiplies with the latent's own weight where it can; LoRA beside it must be seen."""
    model, base = tuned("v2", targets=("kv_b_proj",))
    attention = model.model.layers[0].self_attn
    assert bare_weight(base.model.layers[0].self_attn.kv_b_proj) is not None
    assert bare_weight(attention.kv_b_proj) is None
    how = {
        "do_sample": False,
        "max_new_tokens": 6,
        "eos_token_id": None,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    prompt = tokens(1, 7)
    found = model.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
    wanted = summed(model, base).generate(prompt, attention_mask=torch.ones_like(prompt), **how)
    assert found.sequences.tolist() == wanted.sequences.tolist()
    for one, other in zip(found.logits, wanted.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["v2", "llama"])
def test_low_types_and_recomputed_layers(name):
    given = inputs(name, 2, 9)
    model, _ = tuned(name)

    def gradients(how):
        model.zero_grad()
        how(model.train()).backward()
        return {key: pair.B.grad.clone() for key, pair in lora_of(model).items()}

    wanted = gradients(lambda each: each(**given).loss)
    layers = [module for module in model.modules() if isinstance(module, CheckpointedLayer)]
    for layer in layers:
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = (
            True,
            partial(checkpoint, use_reentrant=False),
        )
    for key, gradient in gradients(lambda each: each(**given).loss).items():
        assert torch.equal(gradient, wanted[key])
    for layer in layers:
        layer.gradient_checkpointing = False
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(lambda each: each(**given).loss)
    assert all(near(found[key], wanted[key], 0.2) and found[key].dtype == torch.float32 for key in wanted)
    half = copy.deepcopy(model).to(torch.bfloat16)
    for pair in lora_of(half).values():
        pair.float()  # pairs of fp32 beside weights of bf16
    assert (logits(half, given).float() - logits(model, given)).abs().max() < 0.15


def test_the_engine_draws_what_the_sum_draws():
    model, base = tuned("v2")
    with torch.no_grad():
        for pair in lora_of(model).values():
            pair.B.mul_(6)
    greedy, prompt = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True), tokens(1, 9)[0].tolist()
    drawn = [
        list(Engine(each).generate([prompt], greedy)[0].completions[0].tokens)
        for each in (model, summed(model, base), base)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("name", MODELS)
def test_merging_leaves_plain_layers(name):
    model, base = tuned(name)
    given = inputs(name, 2, 9)
    wanted = logits(model, given)
    merge(model)
    assert not lora_of(model) and [type(each) for each in model.modules()] == [type(each) for each in base.modules()]
    assert (logits(model, given) - wanted).abs().max() < 2e-5
    assert model.state_dict().keys() == base.state_dict().keys()
