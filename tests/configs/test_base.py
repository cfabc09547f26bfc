"""The way into every config: types, misspelt keys, overrides, errors, copies and files."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from modelwright.configs import CheckedConfig
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.llama.config import LlamaConfig

V4_COMMON_KEYS = {  # what transformers 4 wrote into config files and 5 no longer declares
    "add_cross_attention": False,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "is_decoder": False,
    "prefix": None,
    "pruned_heads": {},
    "sep_token_id": None,
    "task_specific_params": None,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tokenizer_class": None,
    "torchscript": False,
    "typical_p": 1.0,
    "use_bfloat16": False,
    "num_nextn_predict_layers": 1,
    "mlp_bias": False,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "rm_head": False,
    "lm_head": True,
    "_attn_implementation_autoset": False,
}


class ToyConfig(CheckedConfig):
    model_type = "toy"

    width: int = 4
    scale: float | None = None
    names: list[str] | None = None
    pair: tuple[int, int] = (1, 2)
    mode: str = "a"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("num_attention_head", "num_attention_heads"),
        ("hiden_size", "hidden_size"),
        ("n_groups", "n_group"),
        ("topk_metod", "topk_method"),
        ("use_mal", "use_mla"),
        ("rope_tetha", "rope_theta"),
        ("architecture", "architectures"),
    ],
)
def test_a_misspelt_key_is_refused_with_a_suggestion(key, meant):
    message = f'^unknown key "{key}"; did you mean "{meant}"\\?$'
    with pytest.raises(ConfigError, match=message):
        DeepseekV2Config(**{key: 1})
    with pytest.raises(ConfigError, match=message):
        DeepseekV2Config.from_dict({}, **{key: 1})
    with pytest.raises(ConfigError, match=message):
        DeepseekV2Config.from_dict({}, return_unused_kwargs=True, **{key: 1})
    with pytest.raises(ConfigError, match=f"language_config: {message[1:]}"):
        DeepseekVLV2Config(language_config={key: 1})
    with pytest.raises(ConfigError, match=f"language_config: {message[1:]}"):
        DeepseekVLV2Config.from_dict({"language_config": {}}, language_config={key: 1})


@pytest.mark.parametrize(
    ("family", "key", "meant"),
    [
        (DeepseekV2Config, "hiden_size", "hidden_size"),
        (DeepseekV2Config, "rope_tetha", "rope_theta"),
        (ImageGPTConfig, "type_vocab_size", "vocab_size"),
        (LlamaConfig, "num_block", "num_blocks"),
    ],
)
def test_a_key_that_another_program_wrote_is_kept_and_listed(family, key, meant, tmp_path):
    told = f'no field of this family; did you mean "{meant}"?'
    config = family.from_dict({key: 7})
    assert config.fields_without_effect() == {key: told}
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[key] == 7
    for again in (family.from_pretrained(tmp_path), family.from_json_file(tmp_path / "config.json")):
        assert again == config
        assert again.fields_without_effect() == {key: told}
    nested = DeepseekVLV2Config.from_dict({"language_config": {"hiden_size": 7}, "projector_config": {"depht": 3}})
    assert nested.fields_without_effect().keys() == {"language_config.hiden_size", "projector_config.depht"}
    assert DeepseekVLV2Config.from_dict(nested.to_dict()) == nested


def test_where_a_file_comes_from_is_no_field_without_effect():
    notes = {"auto_map": {"AutoConfig": "x.Y"}, "transformers_version": "4.38.2", "rm_head": False}
    assert DeepseekV2Config.from_dict(notes).fields_without_effect() == {"rm_head": "no field of this family"}


@pytest.mark.parametrize("key", sorted(V4_COMMON_KEYS))
def test_keys_that_hub_files_hold_are_not_taken_for_misspellings(key):
    DeepseekV2Config(**{key: V4_COMMON_KEYS[key]})
    DeepseekVLV2Config(**{key: V4_COMMON_KEYS[key]})


def test_unknown_keys_are_kept_and_saved_again(tmp_path):
    config = DeepseekV2Config(auto_map={"AutoConfig": "x.Y"}, rm_head=False)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == {"AutoConfig": "x.Y"}
    assert saved["rm_head"] is False
    assert DeepseekV2Config.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": True}, r"width must be int, got True \(bool\)"),
        ({"width": "32"}, r"width must be int, got '32' \(str\)"),
        ({"width": 4.0}, r"width must be int, got 4.0 \(float\)"),
        ({"width": None}, r"width must be int, got None \(NoneType\)"),
        ({"scale": float("nan")}, r"scale must be a finite number or None, got nan \(float\)"),
        ({"scale": float("inf")}, r"scale must be a finite number or None, got inf \(float\)"),
        ({"scale": False}, r"scale must be a finite number or None, got False \(bool\)"),
        ({"scale": "1"}, r"scale must be a finite number or None, got '1' \(str\)"),
        ({"names": ["a", 1]}, r"names must be list\[str\] or None, got \['a', 1\] \(list\)"),
        ({"pair": (1, 2, 3)}, r"pair must be tuple\[int, int\], got \(1, 2, 3\) \(tuple\)"),
        ({"scale": 10**400}, "scale must be a finite number or None, got an int of 1329 bits"),
        ({"width": 2**63}, "width must be int, got an int of 64 bits"),
        ({"mode": 1}, r"mode must be str, got 1 \(int\)"),
        ({"architectures": "Toy"}, r"architectures"),
    ],
)
def test_a_wrong_type_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        ToyConfig(**values)


def test_an_int_is_a_float_and_none_passes_where_it_is_allowed():
    later = ToyConfig()
    later.scale = 3
    for config in (ToyConfig(scale=3), later):
        assert (config.scale, type(config.scale)) == (3.0, float)
    assert ToyConfig(scale=None, names=None).scale is None


def test_numpy_numbers_become_plain_and_can_be_saved():
    config = ToyConfig(width=np.int64(8), scale=np.float32(0.5))
    assert type(config.width) is int
    assert type(config.scale) is float
    assert '"width": 8' in config.to_json_string()


@given(st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False))
def test_any_valid_values_survive_a_trip_through_json(width, scale):
    config = ToyConfig(width=width, scale=scale)
    again = ToyConfig.from_dict(json.loads(config.to_json_string()))
    assert again == config
    assert (again.width, again.scale) == (width, scale)


def test_what_transformers_refuses_is_a_config_error():
    with pytest.raises(ConfigError, match="DeepseekV2Config: "):
        DeepseekV2Config(problem_type="single_label_classification", num_labels=1)


FAMILIES = [DeepseekV2Config, DeepseekVLV2Config, ImageGPTConfig, LlamaConfig]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wrong", ["bfloat17", "nan", float("nan"), "Tensor", 3])
def test_a_dtype_that_is_none_is_refused(family, wrong):
    with pytest.raises(ConfigError, match=r"(dtype|param_init_type) must be "):
        family(dtype=wrong)
    config = family()
    with pytest.raises(ConfigError, match=r"(dtype|param_init_type) must be "):
        config.dtype = wrong
        config.check()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("written", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_dtype_is_transformers_type_in_every_family(family, written, tmp_path):
    theirs = transformers.LlamaConfig(dtype="bfloat16").dtype
    config = family()
    config.dtype = written
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    for each in (config, family(dtype=written), family(torch_dtype=written), family.from_pretrained(tmp_path)):
        assert each.dtype is theirs is torch.bfloat16


def test_another_model_type_is_refused():
    with pytest.raises(ConfigError, match='model_type must be "deepseek_v2" here, got "llama"'):
        DeepseekV2Config.from_dict({"model_type": "llama"})


def test_overrides_are_merged_before_the_rules_are_checked(tmp_path):
    DeepseekV2Config(use_mla=False).save_pretrained(tmp_path)
    config = DeepseekV2Config.from_pretrained(tmp_path, num_attention_heads=8, num_key_value_heads=4)
    assert (config.num_attention_heads, config.num_key_value_heads) == (8, 4)
    message = r"num_attention_heads \(32\) must be divisible by num_key_value_heads \(5\)"
    with pytest.raises(ConfigError, match=message):
        DeepseekV2Config.from_pretrained(tmp_path, num_key_value_heads=5)
    with pytest.raises(ConfigError, match="num_hidden_layers must be int"):
        DeepseekV2Config.from_pretrained(tmp_path, num_hidden_layers="2")


def test_from_json_file_is_checked_too(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 0}')
    with pytest.raises(ConfigError, match="hidden_size must be at least 1, got 0"):
        DeepseekV2Config.from_json_file(tmp_path / "config.json")


def test_nested_overrides_keep_what_they_do_not_name(tmp_path):
    DeepseekVLV2Config(language_config={"num_hidden_layers": 5, "vocab_size": 64}).save_pretrained(tmp_path)
    config = DeepseekVLV2Config.from_pretrained(tmp_path, language_config={"num_hidden_layers": 2})
    assert (config.language_config.num_hidden_layers, config.language_config.vocab_size) == (2, 64)
    with pytest.raises(ConfigError, match='language_config: unknown key "num_hidden_layer"'):
        DeepseekVLV2Config.from_pretrained(tmp_path, language_config={"num_hidden_layer": 2})


def test_unused_keys_are_handed_back_and_the_file_is_left_alone():
    values = {"num_hidden_layers": 2}
    config, unused = DeepseekV2Config.from_dict(values, return_unused_kwargs=True, use_cache=False, banana=1)
    assert (config.use_cache, unused) == (False, {"banana": 1})
    assert values == {"num_hidden_layers": 2}


def test_dtype_overrides_a_saved_dtype():
    assert str(DeepseekV2Config.from_dict({"torch_dtype": "bfloat16"}).dtype) == "torch.bfloat16"
    assert str(DeepseekV2Config.from_dict({"dtype": "bfloat16"}, torch_dtype="float32").dtype) == "torch.float32"
    assert str(DeepseekV2Config.from_dict({"dtype": "bfloat16"}, dtype="auto").dtype) == "torch.bfloat16"


def test_num_labels_overrides_saved_labels():
    saved = DeepseekV2Config(num_labels=3).to_dict()
    assert DeepseekV2Config.from_dict(saved).num_labels == 3
    assert DeepseekV2Config.from_dict(saved, num_labels=5).id2label == {i: f"LABEL_{i}" for i in range(5)}


def test_attributes_may_be_set_and_are_checked_again_on_request_and_on_saving(tmp_path):
    config = DeepseekV2Config()
    config.use_cache = False
    config._attn_implementation = "sdpa"
    config.check()
    config.hidden_size = -1
    with pytest.raises(ConfigError, match="hidden_size must be at least 1, got -1"):
        config.check()
    with pytest.raises(ConfigError, match="hidden_size must be at least 1, got -1"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize("make", [DeepseekV2Config, DeepseekVLV2Config])
def test_copies_are_equal_and_independent(make, tmp_path):
    config = make(architectures=None, dtype="bfloat16")
    config.save_pretrained(tmp_path)
    for again in (
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
        make.from_dict(config.to_dict()),
        make.from_dict(config.to_diff_dict()),
        make.from_pretrained(tmp_path),
        make.from_json_file(tmp_path / "config.json"),
    ):
        assert again == config
        assert again.to_dict() | {"_name_or_path": ""} == config.to_dict()
    other = copy.deepcopy(config)
    other.get_text_config().hidden_size += 2
    assert other != config
    assert repr(config).startswith(f"{make.__name__} {{")


def test_configs_of_two_classes_are_never_equal():
    assert ToyConfig() != DeepseekV2Config()
    assert ToyConfig() != "toy"
