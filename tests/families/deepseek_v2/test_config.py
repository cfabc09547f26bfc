"""DeepseekV2Config: defaults, every rule's message, derived values, hub files and what transformers reads back."""

import json
from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from modelwright.configs import RopeScaling, RopeSettings
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config

HUB = Path(__file__).parents[2] / "data" / "hub_configs"
HUB_V2 = ["deepseek-v2", "deepseek-v2-lite", "deepseek-v2.5", "deepseek-coder-v2-instruct", "deepseek-coder-v2-lite"]
MOE = {"n_routed_experts": 8, "num_experts_per_tok": 2}
GROUPED = MOE | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
MHA = {"use_mla": False}

DEFAULTS = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "moe_intermediate_size": 1407,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "n_shared_experts": None,
    "n_routed_experts": None,
    "num_experts_per_tok": None,
    "ep_size": 1,
    "routed_scaling_factor": 1.0,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "topk_method": "greedy",
    "n_group": None,
    "topk_group": None,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "pad_token_id": None,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "pretraining_tp": 1,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_mla": True,
    "ffn_dropout": 0.0,
    "qkv_concat": False,
    "gated_mlp": True,
    "topk_bias_update_rate": 0.0,
}


def test_the_defaults_are_the_official_constructors():
    config = DeepseekV2Config()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert DeepseekV2Config.keys_to_ignore_at_inference == ["past_key_values", "cache"]


def test_every_field_survives_saving(tmp_path):
    values = {
        **DEFAULTS,
        **GROUPED,
        "n_shared_experts": 2,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "topk_bias_update_rate": 0.01,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2,
        "q_lora_rank": None,
        "seq_aux": False,
        "use_cache": False,
        "tie_word_embeddings": True,
        "eos_token_id": [1, 2],
        "pad_token_id": -1,
        "hidden_act": "gelu",
        "ffn_dropout": 0.1,
        "attention_dropout": 0.2,
        "attention_bias": True,
        "gated_mlp": False,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 2,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }
    DeepseekV2Config(**values).save_pretrained(tmp_path)
    again = DeepseekV2Config.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in values} == values


POSITIVE = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "moe_layer_freq",
    "ep_size",
    "pretraining_tp",
    "n_shared_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
]


@pytest.mark.parametrize("name", POSITIVE)
def test_counts_are_positive(name):
    with pytest.raises(ConfigError, match=f"^{name} must be at least 1, got 0$"):
        DeepseekV2Config(**{name: 0})


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("first_k_dense_replace", "-1"),
        ("aux_loss_alpha", "-1.0"),
        ("initializer_range", "-1.0"),
        ("topk_bias_update_rate", "-1.0"),
    ],
)
def test_amounts_are_not_negative(name, shown):
    with pytest.raises(ConfigError, match=f"^{name} must be at least 0, got {shown}$"):
        DeepseekV2Config(**{name: -1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rms_norm_eps": 0.0}, "rms_norm_eps must be above 0, got 0.0"),
        ({"routed_scaling_factor": 0}, "routed_scaling_factor must be above 0, got 0"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be in \[0, 1\), got 1.0"),
        ({"ffn_dropout": -0.1}, r"ffn_dropout must be in \[0, 1\), got -0.1"),
        ({"hidden_act": "swiglu"}, 'hidden_act must be one of gelu, .*silu.*; got "swiglu"'),
        ({"topk_method": "best"}, 'must be one of "greedy", "group_limited_greedy", "noaux_tc"; got "best"'),
        ({"scoring_func": "relu"}, 'scoring_func must be one of "softmax", "sigmoid"; got "relu"'),
        ({"kv_lora_rank": None}, "use_mla=True needs a kv_lora_rank, got kv_lora_rank=None"),
        ({"kv_lora_rank": 0}, "use_mla=True needs kv_lora_rank of at least 1, got kv_lora_rank=0"),
        ({"q_lora_rank": 0}, "use_mla=True needs q_lora_rank of at least 1, got q_lora_rank=0"),
        ({"qk_nope_head_dim": 0}, "use_mla=True needs qk_nope_head_dim of at least 1, got qk_nope_head_dim=0"),
        ({"qk_rope_head_dim": 0}, "use_mla=True needs qk_rope_head_dim of at least 1, got qk_rope_head_dim=0"),
        ({"v_head_dim": 0}, "use_mla=True needs v_head_dim of at least 1, got v_head_dim=0"),
        ({"qk_rope_head_dim": 7}, r"RoPE turns pairs: qk_rope_head_dim \(7\) must be even"),
        (
            MHA | {"hidden_size": 96},
            r"RoPE turns pairs: hidden_size / num_attention_heads \(3\) must be even",
        ),
        (MHA | {"hidden_size": 100}, r"hidden_size \(100\) must be divisible by num_attention_heads \(32\)"),
        (
            MHA | {"num_attention_heads": 8, "num_key_value_heads": 3},
            r"num_attention_heads \(8\) must be divisible by num_key_value_heads \(3\)",
        ),
        ({"qkv_concat": True}, r"qkv_concat \(True\) needs use_mla=False, got use_mla=True"),
        ({"n_routed_experts": 8}, r"n_routed_experts \(8\) needs num_experts_per_tok, got None"),
        (MOE | {"num_experts_per_tok": 9}, r"num_experts_per_tok \(9\) must not exceed n_routed_experts \(8\)"),
        (
            MOE | {"topk_method": "noaux_tc"},
            '"noaux_tc" needs n_group and topk_group, got n_group=None, topk_group=None',
        ),
        (GROUPED | {"n_group": 3}, r"n_routed_experts \(8\) must be divisible by n_group \(3\)"),
        (GROUPED | {"topk_group": 5}, r"topk_group \(5\) must not exceed n_group \(4\)"),
        (
            GROUPED | {"num_experts_per_tok": 5},
            r"num_experts_per_tok \(5\) must fit the chosen groups: topk_group \(2\) x 2 experts = 4",
        ),
        (
            GROUPED | {"topk_method": "noaux_tc", "n_group": 8},
            r"ranks groups by their two best experts: n_routed_experts \(8\) / n_group \(8\) must be at least 2",
        ),
        (
            {"topk_bias_update_rate": 0.1},
            r'topk_bias_update_rate \(0.1\) needs topk_method "noaux_tc", got "greedy"',
        ),
        (
            {"attention_bias": False, "use_attention_bias": True},
            r"attention_bias \(False\) contradicts its alias use_attention_bias \(True\)",
        ),
        ({"use_attention_bias": "yes"}, "attention_bias must be bool, got 'yes'"),
        ({"pretraining_tp": 3}, r"hidden_size \(4096\) must be divisible by pretraining_tp \(3\)"),
        ({"pretraining_tp": 2, "vocab_size": 7}, r"vocab_size \(7\) must be divisible by pretraining_tp \(2\)"),
        (
            MOE | {"pretraining_tp": 2},
            r"moe_intermediate_size \(1407\) must be divisible by pretraining_tp \(2\)",
        ),
        (
            {"pretraining_tp": 2, "num_attention_heads": 3, "v_head_dim": 5},
            r"num_attention_heads \* v_head_dim \(15\) must be divisible by pretraining_tp \(2\)",
        ),
        (
            MHA | {"pretraining_tp": 8, "hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 1},
            r"num_key_value_heads \* head_dim \(4\) must be divisible by pretraining_tp \(8\)",
        ),
        (MHA | {"head_dim": 100}, r"head_dim \(100\) must be hidden_size // num_attention_heads \(128\)"),
        ({"qk_head_dim": 100}, r"qk_head_dim \(100\) must be qk_nope_head_dim \+ qk_rope_head_dim \(192\)"),
        ({"eos_token_id": ["a"]}, r"eos_token_id must be int or list\[int\] or None"),
    ],
)
def test_a_broken_rule_is_named_with_both_values(values, message):
    with pytest.raises(ConfigError, match=message):
        DeepseekV2Config(**values)


def test_aliases_and_old_spellings_are_normalised():
    assert DeepseekV2Config(topk_method="gready").topk_method == "greedy"
    assert DeepseekV2Config(use_attention_bias=True).attention_bias is True
    assert DeepseekV2Config(use_attention_bias=True, attention_bias=True).attention_bias is True
    assert "use_attention_bias" not in DeepseekV2Config(use_attention_bias=True).to_dict()
    assert DeepseekV2Config.from_dict({"use_attention_bias": True}, attention_bias=False).attention_bias is False
    assert DeepseekV2Config.from_dict({"num_key_value_heads": None, "num_attention_heads": 4}).num_key_value_heads == 4
    assert DeepseekV2Config.from_dict({"num_key_value_heads": None}).num_key_value_heads == 32


def test_what_mla_needs_may_be_missing_without_it():
    config = DeepseekV2Config(
        use_mla=False,
        kv_lora_rank=None,
        q_lora_rank=None,
        qk_nope_head_dim=0,
        qk_rope_head_dim=0,
        v_head_dim=0,
        hidden_size=1280,
        num_attention_heads=10,
        num_key_value_heads=5,
        qkv_concat=True,
    )
    assert (config.head_dim, config.qk_head_dim, config.kv_numbers_per_token) == (128, 128, 2 * 5 * 128)
    assert config.rope == RopeSettings(10000.0, 128, 2048)


def test_derived_values_with_mla():
    config = DeepseekV2Config()
    assert (config.head_dim, config.qk_head_dim, config.kv_numbers_per_token) == (64, 192, 512 + 64)


@given(layers=st.integers(1, 12), first=st.integers(0, 12), freq=st.integers(1, 5), routed=st.sampled_from([None, 8]))
def test_moe_layers_follow_the_rule(layers, first, freq, routed):
    config = DeepseekV2Config(
        num_hidden_layers=layers,
        first_k_dense_replace=first,
        moe_layer_freq=freq,
        n_routed_experts=routed,
        num_experts_per_tok=2,
    )
    found = [i for i in range(layers) if config.is_moe_layer(i)]
    assert found == [i for i in range(layers) if routed and i >= first and i % freq == 0]


@pytest.mark.parametrize("name", HUB_V2)
def test_hub_files_load_unchanged(name, tmp_path):
    raw = json.loads((HUB / name / "config.json").read_text())
    config = DeepseekV2Config.from_pretrained(HUB / name)
    assert {key: getattr(config, key) for key in raw.keys() & DEFAULTS.keys()} == {
        key: value for key, value in raw.items() if key in DEFAULTS
    }
    assert str(config.dtype) == "torch.bfloat16"
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    lost = {key for key, value in raw.items() if saved.get(key) != value}
    assert lost == {"transformers_version"} and saved.keys() == raw.keys()
    assert DeepseekV2Config.from_pretrained(tmp_path) == config


def test_the_large_hub_model_is_read_as_the_paper_says():
    config = DeepseekV2Config.from_pretrained(HUB / "deepseek-v2")
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (60, 5120, 128)
    assert (config.n_routed_experts, config.n_group, config.topk_group, config.num_experts_per_tok) == (160, 8, 3, 6)
    assert [config.is_moe_layer(i) for i in (0, 1, 59)] == [False, True, True]
    assert config.rope == RopeSettings(10000.0, 64, 163840, RopeScaling("yarn", 40.0, 4096, 32.0, 1.0, 0.707, 0.707))
    assert config.kv_numbers_per_token == 576


@pytest.mark.parametrize("name", HUB_V2)
def test_transformers_reads_what_we_save_and_we_read_what_it_saves(name, tmp_path):
    config = DeepseekV2Config.from_pretrained(HUB / name)
    config.save_pretrained(tmp_path / "ours")
    theirs = transformers.DeepseekV2Config.from_pretrained(tmp_path / "ours")
    ours, read = config.rope_parameters, theirs.rope_parameters
    assert ours is not None
    assert {key: read[key] for key in ours} == ours
    for key in (
        "hidden_size",
        "kv_lora_rank",
        "q_lora_rank",
        "n_routed_experts",
        "topk_method",
        "routed_scaling_factor",
    ):
        assert getattr(theirs, key) == getattr(config, key)
    theirs.save_pretrained(tmp_path / "theirs")
    again = DeepseekV2Config.from_pretrained(tmp_path / "theirs")
    assert {key: getattr(again, key) for key in DEFAULTS} == {key: getattr(config, key) for key in DEFAULTS}
    assert again.rope == config.rope


def test_transformers_finds_the_rope_that_v2_lite_was_saved_with(tmp_path):
    DeepseekV2Config(n_shared_experts=1, **MOE).save_pretrained(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is transformers.DeepseekV2Config
    assert theirs.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}


def test_the_pad_token_must_have_a_row_in_the_embedding():
    with pytest.raises(ConfigError, match=r"^pad_token_id \(96\) must be below vocab_size \(96\)$"):
        DeepseekV2Config(vocab_size=96, pad_token_id=96)
    assert DeepseekV2Config(vocab_size=96, pad_token_id=95).pad_token_id == 95
