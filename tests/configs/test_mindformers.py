"""MindFormers' YAML: which section overrides which, what is refused, and the way back."""

from pathlib import Path

import pytest
import yaml

from modelwright.configs import ParallelConfig
from modelwright.configs.mindformers import merge_run
from modelwright.configs.mindformers_run import keys_without_effect
from modelwright.configs.parallel import RecomputeConfig, SwapConfig
from modelwright.configs.training import OF_SEVERAL_RANKS
from modelwright.configs.yaml_file import read_yaml
from modelwright.errors import ConfigError
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.read import read_config

TINY = {"type": "LlamaConfig", "hidden_size": 32, "num_layers": 4, "num_heads": 4, "vocab_size": 64, "seq_length": 24}
RUNS = Path(__file__).parents[1] / "data" / "mindformers"


def run(**sections):
    return {"model": {"model_config": dict(TINY), "arch": {"type": "LlamaForCausalLM"}}} | sections


def test_a_finetuning_run_of_llama_3_1_70b_is_read():
    config = read_config(RUNS / "finetune_llama3_1_70b.yaml")
    assert isinstance(config, LlamaConfig)
    assert (config.hidden_size, config.num_layers, config.n_kv_heads) == (8192, 80, 8)
    assert (config.intermediate_size, config.vocab_size, config.theta) == (28672, 128256, 500000)
    assert (config.param_init_type, config.compute_dtype, config.rms_norm_eps) == ("float32", "bfloat16", 1e-5)
    degrees = config.parallel_config
    assert (degrees.devices, degrees.pipeline_stage, degrees.micro_batch_num) == (64, 8, 256)
    assert degrees.recompute.select_recompute == [10, 8, 6, 4, 2, 0, 0, 0]
    assert config.parallel.stage_layers == ((10,) * 8,)
    assert config.parallel.token_chunks == 2
    unread = {
        "fine_grain_interleave",
        "parallel_config.vocab_emb_dp",
        "parallel_config.recompute.select_comm_recompute",
        "parallel_config.recompute.mp_comm_recompute",
    }
    assert unread < OF_SEVERAL_RANKS.keys()
    listed = config.fields_without_effect().keys() - keys_without_effect(read_yaml(RUNS / "finetune_llama3_1_70b.yaml"))
    assert listed == unread | {"max_decode_length"}  # it serves nothing: use_past is off


def test_a_prediction_run_of_llama_3_1_8b_is_read():
    config = read_config(RUNS / "predict_llama3_1_8b.yaml")
    assert isinstance(config, LlamaConfig)
    assert (config.extend_method, config.rope.scaling.factor, config.is_dynamic) == ("LLAMA3", 8.0, True)  # type: ignore[union-attr]
    assert (config.use_past, config.block_size, config.num_blocks) == (True, 16, 512)
    assert (config.intermediate_size, config.sampling.eos_token_ids, config.pad_token_id) == (14336, (128009,), 128002)


def test_the_outer_sections_override_the_models():
    inner = {"batch_size": 1, "calculate_per_token_loss": False, "parallel_config": {"data_parallel": 8}}
    sections = {
        "parallel_config": {"model_parallel": 2},
        "moe_config": {"expert_num": 4, "num_experts_chosen": 2},
        "recompute_config": {"recompute": [1, 0]},
        "swap_config": {"swap": True},
        "calculate_per_token_loss": True,
        "runner_config": {"batch_size": 6, "epochs": 2},
    }
    values = run(**sections)
    values["model"]["model_config"] |= inner
    config = LlamaConfig.from_mindformers(values)
    recompute, swap = RecomputeConfig(recompute=[1, 0]), SwapConfig(swap=True)
    assert config.parallel_config == ParallelConfig(model_parallel=2, recompute=recompute, swap=swap)
    assert (config.has_experts, config.batch_size, config.calculate_per_token_loss) == (True, 6, True)
    assert values["model"]["model_config"]["parallel_config"] == {"data_parallel": 8}


def test_what_is_absent_overrides_nothing():
    values = run(recompute_config={"recompute": True})
    values["model"]["model_config"] |= {
        "batch_size": 3,
        "calculate_per_token_loss": True,
        "parallel_config": {"data_parallel": 2},
    }
    config = LlamaConfig.from_mindformers(values)
    assert (config.batch_size, config.calculate_per_token_loss) == (3, True)
    assert config.parallel_config == ParallelConfig(data_parallel=2, recompute=RecomputeConfig(recompute=True))


def test_a_runs_mini_batch_is_its_batch():
    assert merge_run(run(runner_config={"batch_size": 8, "mini_batch_size": 2}))["batch_size"] == 2


def test_a_sparse_file_takes_mindformers_defaults():
    config = LlamaConfig.from_mindformers({"model": {"model_config": {"hidden_size": 32, "num_attention_heads": 4}}})
    assert (config.rms_norm_eps, config.compute_dtype, config.pad_token_id) == (1e-5, "float16", 0)


def test_overrides_come_last():
    assert LlamaConfig.from_mindformers(run(), num_hidden_layers=2, compute_dtype="float32").num_layers == 2


@pytest.mark.parametrize(
    ("text", "value"), [("1e-5", 1e-5), ("1E5", 1e5), ("1.0e-6", 1e-6), ("2", 2), ("'1e-5'", "1e-5"), ("None", "None")]
)
def test_numbers_are_read_as_people_write_them(text, value, tmp_path):
    (tmp_path / "run.yaml").write_text(f"value: {text}\n")
    read = read_yaml(tmp_path / "run.yaml")["value"]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needs model.model_config, and this one has none"),
        ({"model": {"model_config": {"type": "GLMConfig", "num_layers": 2}}}, 'must be "LlamaConfig", got "GLMConfig"'),
        ({"model": 3}, "model must be a mapping, got 3"),
        ({"model": {"model_config": [1]}}, r"model.model_config must be a mapping, got \[1\]"),
        (run(moe_config={"aux_loss_factor": 2.0}), "moe_config: aux_loss_factor must be between 0 and 1, got 2.0"),
    ],
)
def test_a_wrong_run_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        LlamaConfig.from_mindformers(values)


def test_misspelt_keys_of_a_run_are_kept_and_listed(tmp_path):
    values = run(parallel_config={"data_paralel": 2, "mine": 1}, recompute_config={"recomputes": True})
    values["model"]["model_config"]["num_block"] = 8
    config = LlamaConfig.from_mindformers(values)
    assert config.fields_without_effect() == {
        "num_block": 'no field of this family; did you mean "num_blocks"?',
        "parallel_config.data_paralel": 'no field; did you mean "data_parallel"?',
        "parallel_config.mine": "no field",
        "parallel_config.recompute.recomputes": 'no field; did you mean "recompute"?',
    }
    written = config.to_mindformers(tmp_path / "run.yaml")
    assert written["parallel_config"]["data_paralel"] == 2
    assert written["recompute_config"]["recomputes"] is True
    assert read_config(tmp_path) == config
    config.save_pretrained(tmp_path / "hf")
    assert LlamaConfig.from_pretrained(tmp_path / "hf") == config


def test_misspelt_keys_that_a_person_types_are_refused_beside_a_run():
    with pytest.raises(ConfigError, match='unknown key "num_block"; did you mean "num_blocks"'):
        LlamaConfig.from_mindformers(run(), num_block=8)
    with pytest.raises(ConfigError, match='in parallel_config; did you mean "data_parallel"'):
        LlamaConfig.from_mindformers(run(parallel_config={"model_parallel": 2}), parallel_config={"data_paralel": 2})


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "a: !!python/object/apply:os.getcwd []"])
def test_a_damaged_or_unsafe_file_is_refused(text, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        read_yaml(tmp_path / "run.yaml")


def test_a_missing_padding_token_is_written_as_one_that_no_token_is(tmp_path):
    config = LlamaConfig(dialect="mindformers", pad_token_id=None)
    written = config.to_mindformers(tmp_path / "run.yaml")
    assert written["model"]["model_config"]["pad_token_id"] == -1
    assert read_config(tmp_path) == config


def test_unknown_keys_survive_the_way_through(tmp_path):
    values = run()
    values["model"]["model_config"]["auto_register"] = "my.Llama"
    config = LlamaConfig.from_mindformers(values)
    config.to_mindformers(tmp_path / "run.yml")
    assert yaml.safe_load((tmp_path / "run.yml").read_text())["model"]["model_config"]["auto_register"] == "my.Llama"
    assert read_config(tmp_path / "run.yml") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention_dropout": 0.1}, r"attention_dropout \(0.1\) must be 0 in MindFormers"),
        ({"use_eod_attn_mask_compression": True, "reset_position_ids": True}, "has no field in MindFormers"),
    ],
)
def test_what_mindformers_has_no_field_for_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        LlamaConfig(seq_length=24, **values).to_mindformers()
