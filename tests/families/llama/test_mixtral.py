"""Mixtral: a Llama with experts under another name, with transformers' logits both ways, and experts that none has."""

import json
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.folder import find_checkpoint
from modelwright.errors import ConfigError
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.families.read import read_config
from modelwright.planner.plan import plan
from tests.fakes import tokens
from tests.llamas import HUGGING_FACE, MINDFORMERS, left_padded, tiny_llama

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_local_experts": 4,
    "router_aux_loss_coef": 0.02,
}
EXPERTS = {"expert_num": 4, "num_experts_chosen": 2}
PACKINGS = {
    "batched": {"moe_config": EXPERTS | {"routing_policy": "TopkRouterV2", "capacity_factor": 1.1}},
    "grouped": {"moe_config": EXPERTS | {"use_gmm": True}},
    "for inference": {"moe_config": EXPERTS, "use_past": True},
    "fused": {"moe_config": EXPERTS, "qkv_concat": True},
}


@torch.no_grad()
def logits(model, *args, **kwargs):
    return model(*args, **kwargs).logits


def theirs(**fields) -> MixtralForCausalLM:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES | fields)).eval()


@pytest.mark.parametrize("fields", [{}, {"num_experts_per_tok": 3, "tie_word_embeddings": True}, {"head_dim": 12}])
def test_a_folder_of_transformers_loads_and_comes_back(fields, tmp_path):
    model = theirs(**fields)
    model.save_pretrained(tmp_path / "theirs")
    assert find_checkpoint(tmp_path / "theirs").record.name == "llama"
    ours = LlamaForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    ids, mask = tokens(2, 12), left_padded(tokens(2, 12), [12, 5])
    torch.testing.assert_close(logits(ours, ids), logits(model, ids), atol=1e-5, rtol=0)
    found = logits(ours, ids, attention_mask=mask)[mask.bool()]
    torch.testing.assert_close(found, logits(model, ids, attention_mask=mask)[mask.bool()], atol=1e-5, rtol=0)
    assert plan(read_config(tmp_path / "theirs")).counts.parameters.total == model.num_parameters()
    ours.save_pretrained(tmp_path / "ours")
    written, read = (json.loads((tmp_path / side / "config.json").read_text()) for side in ("ours", "theirs"))
    assert written == read | {"transformers_version": written["transformers_version"]}
    again = MixtralForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(logits(again, ids), logits(model, ids))


@pytest.mark.parametrize("name", PACKINGS)
def test_a_mindformers_mixtral_becomes_a_mixtral_with_the_same_logits(name, tmp_path):
    fields = PACKINGS[name] | {"pad_token_id": None}
    ours = tiny_llama(base=MINDFORMERS, **fields)
    ours.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "mf", to="mindformers")
    report = convert(tmp_path / "mf", tmp_path / "hf", to="hf")
    assert not report.notes
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("mixtral", ["MixtralForCausalLM"])
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (4, 2)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    model, info = loaded
    assert isinstance(model, MixtralForCausalLM)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    torch.testing.assert_close(logits(model.eval(), tokens(2, 9)), logits(ours, tokens(2, 9)), atol=1e-5, rtol=0)
    read = (read_config(tmp_path / side).to_dict() for side in ("hf", "mf"))
    found, wanted = ({key: value for key, value in each.items() if key != "architectures"} for each in read)
    assert found == wanted


def test_transformers_mixtral_goes_to_mindformers_and_back_bit_by_bit(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "mf", to="mindformers")
    assert read_config(tmp_path / "mf").moe_config.expert_num == 4  # type: ignore[attr-defined]
    convert(tmp_path / "mf", tmp_path / "b", to="hf")
    found, wanted = (load_file(tmp_path / side / "model.safetensors") for side in ("b", "a"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert torch.equal(logits(again, tokens(2, 9)), logits(model, tokens(2, 9)))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"moe_config": EXPERTS | {"shared_expert_num": 2}}, "shared_expert_num must be 0 in a Mixtral, got 2"),
        ({"moe_config": EXPERTS | {"norm_topk_prob": False}}, "norm_topk_prob must be True in a Mixtral, got False"),
        ({"moe_config": EXPERTS | {"use_gating_sigmoid": True}}, "use_gating_sigmoid must be False"),
        ({"moe_config": EXPERTS | {"num_experts_chosen": 1}}, "num_experts_chosen must be at least 2 in a Mixtral"),
        ({"moe_config": EXPERTS | {"routed_scaling_factor": 2.0}}, "routed_scaling_factor must be 1 in a Mixtral"),
        ({"moe_config": EXPERTS | {"balance_via_topk_bias": True}}, "balance_via_topk_bias must be False"),
        (
            {"moe_config": EXPERTS | {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}},
            'topk_method must be "greedy" in a Mixtral, got group_limited_greedy',
        ),
        ({"moe_config": EXPERTS, "qkv_has_bias": True}, "qkv_has_bias must be False in a Mixtral, got True"),
    ],
)
def test_experts_that_no_mixtral_has_are_refused_by_name_and_taken_for_no_llama(fields, named, tmp_path):
    ours = tiny_llama(base=MINDFORMERS, **fields)
    ours.save_pretrained(tmp_path / "ours")
    with pytest.raises((ValueError, KeyError), match="modelwright_llama"):  # in place of random feed-forwards
        AutoConfig.from_pretrained(tmp_path / "ours")
    assert torch.equal(
        logits(LlamaForCausalLM.from_pretrained(tmp_path / "ours"), tokens(2, 9)), logits(ours, tokens(2, 9))
    )
    convert(tmp_path / "ours", tmp_path / "mf", to="mindformers")
    with pytest.raises(ConfigError, match=f"no model of transformers has these experts.*: {named}"):
        convert(tmp_path / "mf", tmp_path / "refused", to="hf")
    assert not (tmp_path / "refused").exists()
    (note,) = convert(tmp_path / "mf", tmp_path / "hf").notes
    assert note.startswith(f"modelwright reads this checkpoint and transformers cannot: {named[:20]}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"router_jitter_noise": 0.1}, "router_jitter_noise must be 0: a Llama routes without noise, got 0.1"),
        (
            {"num_local_experts": 1, "num_experts_per_tok": 1},
            "num_local_experts must be at least 2 in a Mixtral, got 1",
        ),
        ({"sliding_window": 16}, r"sliding_window \(16\) must be None or at least max_position_embeddings \(64\)"),
        ({"moe_config": {"expert_num": 8}}, r"moe_config expert_num \(8\) contradicts num_local_experts \(4\)"),
        ({"num_experts_per_tok": 9}, r"num_experts_chosen \(9\) must not exceed expert_num \(4\)"),
    ],
)
def test_what_a_llama_has_no_way_to_say_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        LlamaConfig.from_dict({"model_type": "mixtral"} | SIZES | values)


def test_defaults_are_mixtrals():
    wanted, found = transformers.MixtralConfig(), LlamaConfig.from_dict({"model_type": "mixtral"})
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads")
    for name in (*names, "max_position_embeddings", "rms_norm_eps", "num_experts_per_tok", "router_aux_loss_coef"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert found.num_experts == wanted.num_local_experts
    dense = LlamaConfig(**HUGGING_FACE)
    assert dense.kin == "llama" and dense.beyond_transformers() is None
