"""What trainers ask any mixture of experts of transformers' for: router logits, and the balance loss made of them."""

import pytest
import torch
import transformers
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.llama.config import LlamaConfig
from tests.fakes import DENSE, GROUPED, MOE, NOAUX, tiny_v2, tiny_vl2, tokens
from tests.llamas import EXPERTS, HUGGING_FACE, left_padded, tiny_llama
from tests.trainers import losses_of, make_trainer

close = torch.testing.assert_close
ROUTED = {
    "greedy": lambda: tiny_v2(base=MOE | {"first_k_dense_replace": 0}),
    "grouped": lambda: tiny_v2(base=GROUPED),
    "noaux_tc": lambda: tiny_v2(base=NOAUX),
    "llama": lambda: tiny_llama(base=HUGGING_FACE, moe_config=EXPERTS),
}


@pytest.fixture(params=ROUTED.values(), ids=ROUTED)
def model(request):
    return request.param()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_the_balance_loss_is_transformers_of_these_logits(model, training, padded):
    config, ids = model.config, tokens(2, 9)
    config.router_aux_loss_coef = 0.25
    inputs = {"input_ids": ids, "labels": ids}
    if padded:
        inputs["attention_mask"] = left_padded(ids, [9, 5])
    own = model(**inputs)  # in evaluation: the language model's loss alone
    model.train(training)
    found = model(**inputs, output_router_logits=True)
    assert {logits.shape for logits in found.router_logits} == {(18, config.num_experts)}
    wanted = load_balancing_loss_func(
        found.router_logits, config.num_experts, config.num_experts_per_tok, inputs.get("attention_mask")
    )
    close(found.aux_loss, wanted)
    close(found.loss, own.loss + 0.25 * wanted)
    found.aux_loss.backward()
    gates = [p.grad for name, p in model.named_parameters() if name.endswith("gate.weight")]
    assert gates and all(gate.abs().sum() > 0 for gate in gates)


def test_the_config_may_ask_for_them(model):
    ids = tokens(1, 6)
    assert model(ids).router_logits is None
    model.config.output_router_logits = True
    assert model(ids).router_logits is not None and model.base_model(ids).router_logits is not None
    assert model(ids, output_router_logits=False).router_logits is None
    again = type(model.config).from_dict(model.config.to_dict())
    assert again.output_router_logits and again == model.config


def test_the_coefficient_is_the_familys_own():
    config = DeepseekV2Config(**MOE, router_aux_loss_coef=0.5)
    assert config.aux_loss_alpha == config.router_aux_loss_coef == 0.5
    llama = LlamaConfig(**HUGGING_FACE, moe_config=EXPERTS)
    llama.router_aux_loss_coef = 0.125
    assert llama.moe_config.aux_loss_factor == llama.router_aux_loss_coef == 0.125
    assert (llama.num_experts, llama.num_experts_per_tok) == (4, 2)
    llama.moe_config = {**EXPERTS, "z_loss_factor": 0.5}
    with pytest.raises(ConfigError, match=r"z_loss_factor \(0.5\) must be 0 and aux_loss_types \(None\) must be None"):
        llama.router_aux_loss_coef  # noqa: B018


@pytest.mark.parametrize("config", [DeepseekV2Config(**DENSE), LlamaConfig(**HUGGING_FACE)], ids=["v2", "llama"])
def test_a_config_without_experts_has_nothing_of_them(config):
    for name in ("output_router_logits", "router_aux_loss_coef", "num_experts"):
        assert not hasattr(config, name)
    config.output_router_logits = True  # as a file of another program may say
    assert type(config).from_dict(config.to_dict()).output_router_logits


def test_layers_without_experts_return_none():
    assert tiny_v2(base=DENSE)(tokens(1, 4), output_router_logits=True).router_logits is None
    assert tiny_llama()(tokens(1, 4), output_router_logits=True).aux_loss is None


def test_pictures_come_with_router_logits_too():
    model = tiny_vl2()
    model.config.get_text_config().output_router_logits = True
    assert len(model(tokens(1, 4)).router_logits) == 1


def mixtral() -> tuple[torch.nn.Module, torch.nn.Module]:
    """A Llama with experts and transformers' Mixtral on the same weights."""
    fields = HUGGING_FACE | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2}
    fields |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rms_norm_eps": 1e-6}
    theirs = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**fields, output_router_logits=True, router_aux_loss_coef=0.5)
    )
    ours = tiny_llama(base=HUGGING_FACE, moe_config=EXPERTS | {"norm_topk_prob": True, "aux_loss_factor": 0.5})
    ours.config.output_router_logits = True
    state = {name.replace(".mlp.", ".block_sparse_moe."): tensor for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(state)
    return ours, theirs


@pytest.mark.slow
def test_trainer_learns_what_transformers_mixtral_learns(tmp_path):
    found = []
    for model in mixtral():
        found.append(losses_of(make_trainer(model, tmp_path, 4, learning_rate=1e-3)))
    close(torch.tensor(found[0]), torch.tensor(found[1]), atol=1e-4, rtol=0)
