"""LlamaConfig: both vocabularies and their defaults, every rule's message, dtypes, overrides and what is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.configs import MoEConfig, ParallelConfig
from modelwright.errors import ConfigError
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.config.names import ALIASES, MINDFORMERS_FIELDS
from modelwright.families.llama.config.widths import feed_forward_width
from modelwright.families.read import read_config

HUB = Path(__file__).parents[2] / "data" / "hub_configs"
TINY: dict[str, Any] = {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "n_kv_heads": 2, "vocab_size": 64}
TINY |= {"seq_length": 24, "dialect": "mindformers"}
HUB_LLAMA = [
    "code-llama-7b",
    "llama-2-70b",
    "llama-2-7b",
    "llama-3-8b",
    "llama-3.1-70b",
    "llama-3.1-8b",
    "llama-3.2-1b",
    "llama-3.3-70b",
    "llama-7b",
    "mistral-7b-v0.3",
    "tinyllama-1.1b",
]
# What transformers renamed, derives, or does not keep.
NOT_IN_TRANSFORMERS = {"_name_or_path", "architectures", "model_type", "pretraining_tp", "sliding_window"}
NOT_IN_TRANSFORMERS |= {"rope_scaling", "rope_theta", "torch_dtype", "transformers_version"}


def test_there_are_61_fields_with_the_documented_defaults():
    assert len(MINDFORMERS_FIELDS) == 61
    config = LlamaConfig(dialect="mindformers")
    resolved = {
        "n_kv_heads": 32,
        "max_position_embedding": 2048,
        "intermediate_size": 11008,
        "parallel_config": ParallelConfig(),
        "moe_config": MoEConfig(),
    }
    for name, default in (MINDFORMERS_FIELDS | resolved).items():
        assert getattr(config, name) == default, name
    assert config == LlamaConfig(dialect="mindformers", **MINDFORMERS_FIELDS)


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_mindformers_names_read_set_and_build_the_same_fields(alias, name):
    value = {"n_kv_heads": 4, "num_layers": 8, "num_heads": 64, "theta": 5e5, "init_method_std": 0.5}.get(alias, 4096)
    config = LlamaConfig(**{alias: value})
    assert getattr(config, alias) == getattr(config, name) == value
    setattr(config, alias, 2 * value)
    assert getattr(config, name) == 2 * value
    with pytest.raises(ConfigError, match=rf"\({2 * value}\) contradicts.*\({value}\)|\({value}\).*\({2 * value}\)"):
        LlamaConfig(**{alias: value, name: 2 * value})
    assert getattr(LlamaConfig(**{alias: value, name: value}), name) == value


def test_a_hugging_face_config_takes_hugging_faces_defaults():
    config = LlamaConfig(model_type="llama")
    theirs = transformers.LlamaConfig()
    for name in ("rms_norm_eps", "initializer_range", "intermediate_size", "max_position_embeddings", "vocab_size"):
        assert getattr(config, name) == getattr(theirs, name), name
    assert config.pad_token_id is None
    assert (config.param_init_type, config.compute_dtype, config.rotary_dtype) == ("float32",) * 3
    assert (config.fused_rms_norm, config.use_flash_attention, config.do_sample, config.top_k) == (
        False,
        True,
        False,
        50,
    )
    assert LlamaConfig(model_type="llama", max_position_embeddings=512).seq_length == 512


@pytest.mark.parametrize(
    ("dialect", "eps", "dtype"), [("hugging_face", 1e-6, "float32"), ("mindformers", 1e-5, "float16")]
)
def test_the_dialect_is_stated_and_no_name_brings_it(dialect, eps, dtype):
    for names in ({}, {"num_hidden_layers": 2}, {"num_layers": 2}, {"seq_length": 16, "use_past": True}):
        config = LlamaConfig(dialect=dialect, **names)
        assert (config.rms_norm_eps, config.param_init_type) == (eps, dtype)
    with pytest.raises(ConfigError, match=f'dialect must be one of "hugging_face", "mindformers"; got "{dialect}s"'):
        LlamaConfig(dialect=f"{dialect}s")


def test_without_a_word_the_dialect_is_hugging_faces():
    assert LlamaConfig() == LlamaConfig(dialect="hugging_face") == LlamaConfig.from_dict({})
    assert LlamaConfig.from_mindformers({"model": {"model_config": {"num_layers": 2}}}).dialect == "mindformers"


def test_an_override_does_not_change_whose_defaults_a_file_takes():
    config = LlamaConfig.from_dict({"model_type": "llama", "num_hidden_layers": 2}, use_flash_attention=False)
    assert (config.rms_norm_eps, config.use_flash_attention, config.compute_dtype) == (1e-6, False, "float32")


@pytest.mark.parametrize(
    ("hidden", "multiple", "multiplier", "width"),
    [
        (4096, 256, None, 11008),
        (8192, 256, 1.3, 28672),
        (32, 16, None, 96),
        (32, 8, 1.3, 112),
        (4096, 1024, 1.3, 14336),
    ],
)
def test_the_feed_forward_width_follows_mindformers_order_of_operations(hidden, multiple, multiplier, width):
    assert feed_forward_width(hidden, multiple, multiplier) == width


def test_numbers_left_out_are_resolved():
    config = LlamaConfig(**TINY | {"n_kv_heads": None, "max_position_embedding": 0, "multiple_of": 16})
    assert (config.num_key_value_heads, config.max_position_embeddings, config.intermediate_size) == (4, 24, 96)
    assert LlamaConfig(**TINY, intermediate_size=48, multiple_of=32).intermediate_size == 48


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 5}, r"hidden_size \(32\) must be divisible by num_attention_heads \(5\)"),
        ({"n_kv_heads": 3}, r"num_attention_heads \(4\) must be divisible by num_key_value_heads \(3\)"),
        ({"hidden_size": 12}, r"RoPE turns pairs: hidden_size / num_attention_heads \(3\) must be even"),
        ({"head_dim": 7}, r"RoPE turns pairs: head_dim \(7\) must be even"),
        ({"head_dim": 0}, r"head_dim must be None or an int of at least 1, got 0"),
        ({"head_dim": "16"}, r"head_dim must be None or an int of at least 1, got '16' \(str\)"),
        ({"hidden_act": "gelu"}, 'hidden_act must be "silu" in a Llama, got "gelu"'),
        ({"mlp_bias": True}, "mlp_bias must be False"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be in \[0, 1\), got 1.0"),
        ({"pad_token_id": 64}, r"pad_token_id \(64\) must be below vocab_size \(64\)"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps must be above 0, got 0.0"),
        ({"ffn_dim_multiplier": -1.0}, "ffn_dim_multiplier must be a finite number above 0, got -1.0"),
        ({"pretraining_tp": 3}, r"hidden_size \(32\) must be divisible by pretraining_tp \(3\)"),
        ({"num_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
        ({"num_heads": "4"}, r"num_attention_heads must be int, got '4' \(str\)"),
        ({"qkv_has_bias": 1}, r"qkv_has_bias must be bool, got 1 \(int\)"),
        ({"compute_dtype": "float64"}, 'compute_dtype must be one of "float32", "float16", "bfloat16"; got "float64"'),
        ({"dtype": "float16", "param_init_type": "float32"}, r"param_init_type \(float32\) contradicts .* \(float16\)"),
        (
            {"attention_bias": True, "qkv_has_bias": False},
            r"attention_bias \(True\) contradicts qkv_has_bias \(False\)",
        ),
        ({"num_layer": 2}, 'unknown key "num_layer"; did you mean "num_layers"'),
        ({"chunk_prefill": True}, "chunk_prefill \\(True\\) needs use_past=True, got use_past=False"),
        (
            {"llm_backend": "vllm"},
            'llm_backend must be one of "", "compile", "eager", "record", "cudagraph"; got "vllm"',
        ),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"top_p": 1.5}, "top_p must be between 0 and 1, got 1.5"),
        ({"top_k": -1}, "top_k must be at least 0, got -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0, got 0.0"),
        (
            {"quant_config": {"quant_method": "ptq"}},
            "one of int8_weight_only, .*, int8_kv, rtn; got 'ptq'",
        ),
        ({"quantization_config": {"quant_method": "?"}}, r"quant_method must be one of .*; got '\?'"),
        ({"use_ring_attention": True}, "needs use_flash_attention=True and context_parallel above 1, got .*=False and"),
        (
            {"use_eod_attn_mask_compression": True, "eos_token_id": None},
            "needs an eos_token_id to end documents, got None",
        ),
        ({"reset_position_ids": True}, "needs use_eod_attn_mask_compression=True, got False"),
        (
            {"parallel_config": {"model_paralel": 2}},
            'in parallel_config; did you mean "model_parallel"',
        ),
        ({"parallel_config": {"model_parallel": 4}}, r"num_key_value_heads \(2\) must be divisible by .* \(4\)"),
        ({"parallel_config": {"expert_parallel": 2}}, r"\(1\) must be divisible by expert_parallel \(2\)"),
        ({"parallel_config": 3}, "parallel_config must be a dict, an object or None, got 3"),
        ({"moe_config": {"expert_nums": 2}}, 'unknown key "expert_nums" in moe_config; did you mean "expert_num"'),
        (
            {"moe_config": {"expert_model_parallel": 2}},
            r"\(2\) must be 1 or model_parallel \(1\)",
        ),
        (
            {"offset": [1, 1]},
            r"list of pipeline_stage \(1\) ints, or .* \(1\) such lists; got \[1, 1\]",
        ),
        ({"offset": 1}, r"offset \(1\) gives the stages \[5\] layers, 5 together, and there are 4"),
        (
            {"pipeline_stage": {"start_stage": 1, "stage_num": 1, "offset": 0}},
            r"start_stage \(1\) \+ stage_num \(1\) must not exceed the pipeline_stage of parallel_config \(1\)",
        ),
    ],
)
def test_a_broken_rule_is_refused_with_both_values(values, message):
    given_values = {key: value for key, value in TINY.items() if ALIASES.get(key) not in values}
    with pytest.raises(ConfigError, match=message):
        LlamaConfig(**given_values | values)


@pytest.mark.parametrize("value", ["BFloat16", "torch.bfloat16", "mstype.bfloat16", "bfloat16"])
def test_dtypes_are_kept_as_plain_names(value):
    config = LlamaConfig(param_init_type=value)
    assert config.param_init_type == config.embedding_dtype == "bfloat16"
    config.compute_dtype = value
    assert config.residual_dtype_name == "bfloat16"


def test_setting_dtype_takes_along_what_was_one_with_it():
    config = LlamaConfig(model_type="llama", dtype="float16")
    assert (config.param_init_type, config.compute_dtype) == ("float16", "float16")
    config.dtype = "bfloat16"
    moved = (config.param_init_type, config.compute_dtype, config.rotary_dtype, config.norm_dtype)
    assert moved == ("bfloat16",) * 4
    assert (config.layernorm_compute_type, config.softmax_compute_type) == ("float32", "float32")
    mixed = LlamaConfig(param_init_type="float32", compute_dtype="bfloat16", rotary_dtype="float16")
    mixed.dtype = "float16"
    assert (mixed.param_init_type, mixed.compute_dtype, mixed.rotary_dtype) == ("float16", "bfloat16", "float16")
    mixed.dtype = None
    assert mixed.param_init_type == "float16"


def test_an_overridden_dtype_moves_a_files_types():
    file = json.loads((HUB / "llama-2-7b" / "config.json").read_text())
    config = LlamaConfig.from_dict(file, dtype="bfloat16")
    assert (config.param_init_type, config.compute_dtype, config.rotary_dtype) == ("bfloat16",) * 3


def test_a_negative_padding_token_means_none():
    assert LlamaConfig(pad_token_id=-1).pad_token_id is None


def test_one_bias_switch_says_both():
    config = LlamaConfig(**TINY, attention_bias=True)
    assert config.qkv_has_bias and config.attn_proj_has_bias and config.attention_bias
    config.attn_proj_has_bias = False
    with pytest.raises(ConfigError, match=r"qkv_has_bias \(True\) must equal attn_proj_has_bias \(False\)"):
        _ = config.attention_bias
    assert "attention_bias" not in config.to_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extend_method": "DYNAMIC_NTK", "is_dynamic": True}, '"DYNAMIC_NTK" has no rope type in Hugging Face'),
    ],
)
def test_what_hugging_face_cannot_say_is_not_saved_but_kept(values, message, tmp_path):
    config = LlamaConfig(**TINY, **values)
    with pytest.raises(ConfigError, match=message):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    assert LlamaConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", HUB_LLAMA)
def test_hub_files_load_save_and_mean_the_same_in_transformers(name, tmp_path):
    file = json.loads((HUB / name / "config.json").read_text())
    config = read_config(HUB / name)
    assert isinstance(config, LlamaConfig)
    config.save_pretrained(tmp_path)
    assert read_config(tmp_path) == config
    theirs = transformers.LlamaConfig.from_pretrained(tmp_path)
    for key in file.keys() - NOT_IN_TRANSFORMERS:
        assert getattr(theirs, key) == file[key], key
    assert str(theirs.dtype) == f"torch.{file['torch_dtype']}"
    plain = file.get("rope_scaling") or {"rope_type": "default"}
    assert theirs.rope_parameters == {"rope_theta": file.get("rope_theta", 10000.0)} | plain
    config.to_mindformers(tmp_path / "run.yaml")
    back = read_config(tmp_path / "run.yaml")
    ours = {"architectures": 0, "_name_or_path": 0, "dialect": 0}
    assert back.to_dict() | ours == config.to_dict() | ours
    assert back.dialect == "mindformers"  # type: ignore[attr-defined]


def test_a_sliding_window_is_refused():
    with pytest.raises(ConfigError, match=r"sliding_window \(4096\) must be None or at least .* \(32768\)"):
        read_config(HUB / "mistral-7b-v0.1")
    with pytest.raises(ConfigError, match=r"sliding_window \(4096\) must be .* \(131072\)"):
        LlamaConfig(model_type="mistral")


def test_the_loaded_model_type_is_llamas():
    assert read_config(HUB / "mistral-7b-v0.3").architectures == ["LlamaForCausalLM"]
    with pytest.raises(ConfigError, match='model_type must be "llama" here, got "gpt2"'):
        LlamaConfig(model_type="gpt2")


def test_transformers_own_quantization_is_left_to_it():
    theirs = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    config = LlamaConfig(**TINY, quantization_config=theirs)
    assert (config.quant_config, config.quantization_config) == (None, theirs)  # type: ignore[attr-defined]
    assert LlamaConfig.from_dict(config.to_dict()) == config
    ours = LlamaConfig(**TINY, quantization_config={"quant_method": "int8_kv"})
    assert ours.quant_config == {"quant_method": "int8_kv"}
    assert ours.engine.quantization is not None
    assert ours.engine.quantization.kv_cache == "int8"


def test_the_views_say_what_the_fields_say():
    config = LlamaConfig(
        **TINY | {"pad_token_id": 3, "eos_token_id": [2, 5], "batch_size": 6},
        use_past=True,
        chunk_prefill=True,
        parallel_config={"pipeline_stage": 2, "micro_batch_num": 4, "recompute": [1, 0]},
        pp_interleave_num=2,
        fine_grain_interleave=2,
        calculate_per_token_loss=True,
    )
    assert (config.engine.batch_size, config.engine.chunk_prefill) == (6, True)
    assert config.engine.block_size * config.engine.num_blocks == 8192
    assert (config.sampling.eos_token_ids, config.sampling.pad_token_id, config.sampling.top_k) == ((2, 5), 3, 5)
    assert config.parallel.stage_layers == ((1, 1), (1, 1))
    assert (config.training.per_token_loss, config.training.micro_batches) == (True, 4)
    assert config.training.recompute.recompute == [1, 0]


def test_a_part_of_the_pipeline_is_placed():
    part = {"start_stage": 1, "stage_num": 2, "offset": [1, -1]}
    config = LlamaConfig(**TINY, parallel_config={"pipeline_stage": 4, "micro_batch_num": 4}, pipeline_stage=part)
    assert (config.parallel.first_stage, config.parallel.stage_layers) == (1, ((3, 1),))


def test_sub_configs_are_dicts_objects_or_none():
    degrees = ParallelConfig(data_parallel=2)
    for value in (degrees, {"data_parallel": 2}, degrees.to_dict()):
        assert LlamaConfig(**TINY, parallel_config=value).parallel_config == degrees
    config = LlamaConfig(**TINY, moe_config=None)
    assert not config.has_experts
    config.moe_config = {"expert_num": 4, "num_experts_chosen": 2}  # type: ignore[assignment]
    assert config.has_experts and config.moe_config == MoEConfig(expert_num=4, num_experts_chosen=2)


def test_overrides_merge_into_sub_configs_key_by_key():
    saved = LlamaConfig(**TINY, parallel_config={"data_parallel": 2, "vocab_emb_dp": False}).to_dict()
    config = LlamaConfig.from_dict(saved, parallel_config={"data_parallel": 4}, num_heads=8, n_kv_heads=8)
    assert config.parallel_config == ParallelConfig(data_parallel=4, vocab_emb_dp=False)
    assert (config.num_attention_heads, config.num_key_value_heads) == (8, 8)


def test_fields_without_effect_are_named():
    assert LlamaConfig().fields_without_effect() == {}
    idle = LlamaConfig(
        **TINY,
        parallel_config={"mem_coeff": 0.5, "data_parallel": 2},
        moe_config={"npu_nums_per_device": 8, "capacity_factor": 2.0},
        fine_grain_interleave=2,
        pp_interleave_num=2,
    )
    assert idle.fields_without_effect() == {
        "parallel_config.mem_coeff": "a weight in MindFormers' own planner of layouts",
        "moe_config.capacity_factor": "expert_num is 1: no experts",
        "moe_config.npu_nums_per_device": "expert_num is 1: no experts",
        "fine_grain_interleave": "several ranks read it, and one trains: chunks of tokens whose communication overlaps "
        "computation",
        "pp_interleave_num": "several ranks read it, and one trains: virtual stages of each rank",
    }
    experts = {"expert_num": 4, "num_experts_chosen": 2, "npu_nums_per_device": 8}
    assert list(LlamaConfig(**TINY, moe_config=experts).fields_without_effect()) == ["moe_config.npu_nums_per_device"]


VALUES: dict[str, Any] = {
    "batch_size": st.integers(1, 8),
    "seq_length": st.integers(1, 4096),
    "n_kv_heads": st.sampled_from([None, 1, 2, 4]),
    "max_position_embedding": st.sampled_from([None, 0, 128]),
    "intermediate_size": st.sampled_from([None, 48]),
    "multiple_of": st.integers(1, 64),
    "ffn_dim_multiplier": st.sampled_from([None, 1, 1.3]),
    "rms_norm_eps": st.floats(1e-8, 1e-2),
    "pad_token_id": st.sampled_from([None, 0, 63]),
    "eos_token_id": st.sampled_from([2, [2, 3]]),
    "param_init_type": st.sampled_from(["float32", "float16", "bfloat16"]),
    "residual_dtype": st.sampled_from([None, "float32"]),
    "embedding_init_type": st.sampled_from([None, "float32"]),
    "attention_bias": st.booleans(),
    "tie_word_embeddings": st.booleans(),
    "theta": st.floats(1.5, 1e6),
    "fused_rms_norm": st.booleans(),
    "quant_config": st.sampled_from([None, {"quant_method": "int8_kv"}]),
    "moe_config": st.sampled_from([None, {"expert_num": 4, "num_experts_chosen": 2, "z_loss_factor": 0.1}]),
    "parallel_config": st.sampled_from([None, {"model_parallel": 1, "recompute": True, "swap": {"swap": True}}]),
    "rope": st.sampled_from(
        [
            {},
            {"extend_method": "PI", "scaling_factor": 4},
            {"extend_method": "NTK", "scaling_factor": 4.0},
            {"extend_method": "linear", "scaling_factor": {"factor": 2.0}},
        ]
    ),
}


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_any_config_survives_dict_yaml_and_json(values):
    rope = values.pop("rope", {})
    config = LlamaConfig(**TINY | values | rope)
    assert LlamaConfig.from_dict(config.to_dict()) == config
    assert LlamaConfig(**json.loads(config.to_json_string())) == config
    assert LlamaConfig.from_mindformers(config.to_mindformers()) == config
    theirs = transformers.LlamaConfig(**json.loads(config.to_json_string()))
    assert theirs.rope_parameters == config.rope_parameters
    assert (theirs.intermediate_size, theirs.attention_bias) == (config.intermediate_size, config.attention_bias)
    assert str(theirs.dtype) == f"torch.{config.param_init_type}"
