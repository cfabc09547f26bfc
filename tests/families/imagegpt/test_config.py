"""ImageGPTConfig: the official defaults, both names of a field, every rule's message, and files written and read."""

import json

import pytest
from transformers import ImageGPTConfig as TheirImageGPTConfig

from modelwright.errors import ConfigError
from modelwright.families.imagegpt.config import ImageGPTConfig

FIELDS = {
    "vocab_size": 513,
    "n_positions": 1024,
    "n_embd": 512,
    "n_layer": 24,
    "n_head": 8,
    "n_inner": None,
    "activation_function": "quick_gelu",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "scale_attn_weights": True,
    "use_cache": True,
    "tie_word_embeddings": False,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}


def test_the_defaults_are_the_official_ones():
    config, theirs = ImageGPTConfig(), TheirImageGPTConfig()
    for name, value in FIELDS.items():
        assert getattr(config, name) == value == getattr(theirs, name)
    assert ImageGPTConfig.keys_to_ignore_at_inference == ["past_key_values", "cache"]


def test_derived_sizes():
    config = ImageGPTConfig(n_embd=24, n_head=3)
    assert (config.head_dim, config.inner_width, config.start_token_id) == (8, 96, 512)
    assert ImageGPTConfig(n_inner=7).inner_width == 7


def test_common_names_read_set_and_build_the_official_fields():
    config = ImageGPTConfig(
        hidden_size=24, max_position_embeddings=16, num_attention_heads=3, num_hidden_layers=2, n_layer=2
    )
    assert (config.n_embd, config.n_positions, config.n_head, config.n_layer) == (24, 16, 3, 2)
    assert (config.hidden_size, config.num_hidden_layers) == (24, 2)
    config.hidden_size = 48
    assert config.n_embd == 48
    assert "hidden_size" not in config.to_dict()


def test_two_names_of_one_thing_must_agree():
    with pytest.raises(ConfigError, match=r"n_embd \(24\) contradicts hidden_size \(32\), another name of it"):
        ImageGPTConfig(n_embd=24, hidden_size=32)


@pytest.mark.parametrize("override", [{"hidden_size": 48}, {"n_embd": 48}])
@pytest.mark.parametrize("file", [{"hidden_size": 24}, {"n_embd": 24}])
def test_an_override_of_either_name_replaces_both(file, override):
    assert ImageGPTConfig.from_dict(file | {"n_head": 3}, **override).n_embd == 48


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_embd": 10, "n_head": 3}, r"n_embd \(10\) must be divisible by n_head \(3\)"),
        ({"vocab_size": 1}, "vocab_size must be at least 2, got 1"),
        ({"n_positions": 0}, "n_positions must be at least 1, got 0"),
        ({"num_hidden_layers": 0}, "n_layer must be at least 1, got 0"),
        ({"n_inner": 0}, "n_inner must be at least 1, got 0"),
        ({"initializer_range": -0.1}, "initializer_range must be at least 0, got -0.1"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be above 0, got 0"),
        ({"resid_pdrop": 1.0}, r"resid_pdrop must be in \[0, 1\), got 1.0"),
        ({"embd_pdrop": -0.5}, r"embd_pdrop must be in \[0, 1\), got -0.5"),
        ({"attn_pdrop": 2}, r"attn_pdrop must be in \[0, 1\), got 2"),
        ({"activation_function": "quick"}, 'activation_function must be one of .*; got "quick"'),
        ({"n_head": 2.5}, r"n_head must be int, got 2.5 \(float\)"),
        ({"scale_attn_weights": 1}, r"scale_attn_weights must be bool, got 1 \(int\)"),
        ({"pad_token_id": 513}, r"pad_token_id \(513\) must be below vocab_size \(513\)"),
        ({"add_cross_attention": True}, "add_cross_attention must be False: ImageGPT reads no encoder; got True"),
        ({"n_heads": 4}, 'unknown key "n_heads"; did you mean "n_head"?'),
        ({"model_type": "gpt2"}, 'model_type must be "imagegpt" here, got "gpt2"'),
    ],
)
def test_every_rule_names_itself_and_the_values(values, message):
    with pytest.raises(ConfigError, match=message):
        ImageGPTConfig(**values)


def test_a_value_set_later_is_checked_again():
    config = ImageGPTConfig()
    config.n_head = 7
    with pytest.raises(ConfigError, match=r"n_embd \(512\) must be divisible by n_head \(7\)"):
        config.check()


def test_a_saved_config_is_read_back_by_us_and_by_transformers(tmp_path):
    config = ImageGPTConfig(n_embd=24, n_head=3, n_inner=50, scale_attn_by_inverse_layer_idx=True, resid_pdrop=0)
    config.save_pretrained(tmp_path)
    assert ImageGPTConfig.from_pretrained(tmp_path) == config
    theirs = TheirImageGPTConfig.from_pretrained(tmp_path)
    for name in FIELDS:
        assert getattr(theirs, name) == getattr(config, name)


def test_a_hub_file_loads_with_its_other_keys(tmp_path):
    hub = {key: value for key, value in FIELDS.items() if key != "add_cross_attention"}
    hub |= {"architectures": ["ImageGPTForCausalImageModeling"], "model_type": "imagegpt", "torch_dtype": "float32"}
    hub |= {"transformers_version": "4.11.0.dev0", "task_specific_note": 3}
    (tmp_path / "config.json").write_text(json.dumps(hub))
    config = ImageGPTConfig.from_pretrained(tmp_path)
    assert config.n_embd == 512
    assert config.to_dict()["task_specific_note"] == 3
