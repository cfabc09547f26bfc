"""Every key and value of the run files that MindFormers publishes: read, counted, planned, and acting or listed.

`mindformers_run_keys.json` holds each key path of the 248 published files of a `LlamaConfig`, in how many of them it
stands, and its commonest values.
"""

import copy
import json
from collections.abc import Mapping
from typing import Any

import pytest

from modelwright.configs.base import own_fields
from modelwright.configs.mindformers import merge_run
from modelwright.configs.mindformers_run import ACTING, as_meant, keys_without_effect
from modelwright.configs.moe import MoEConfig
from modelwright.configs.parallel import ParallelConfig, RecomputeConfig
from modelwright.errors import ConfigError
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.config.names import ALIASES
from modelwright.planner.counting import count
from modelwright.planner.plan import plan
from tests.fakes import GOLDEN

KEYS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "mindformers_run_keys.json").read_text())["keys"]
MODEL = {"type": "LlamaConfig", "hidden_size": 4096, "num_layers": 32, "num_heads": 32, "vocab_size": 152064}
BASE: dict[str, Any] = {
    "run_mode": "train",
    "model": {"arch": {"type": "LlamaForCausalLM"}, "model_config": MODEL | {"seq_length": 4096}},
}
PLAIN = LlamaConfig.from_mindformers(BASE)
STRETCH = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SELECTIONS = ("recompute_config.select_recompute.", "recompute_config.select_comm_recompute.")


def beside(path: str, value: Any) -> dict[str, Any]:
    """What stands beside a key in the files that have it, by path, where the value says nothing alone."""
    model, stages = "model.model_config", "parallel_config.pipeline_stage"
    if path == f"{model}.num_heads":
        return {f"{model}.hidden_size": 128 * value}
    if path == f"{model}.n_kv_heads" and value == 20:
        return {f"{model}.num_heads": 20, f"{model}.hidden_size": 2560}
    if path == f"{model}.extend_method" and value == "LLAMA3":
        return {f"{model}.scaling_factor": STRETCH}
    if path.startswith(f"{model}.scaling_factor."):
        return {f"{model}.scaling_factor": dict(STRETCH), f"{model}.extend_method": "LLAMA3"}
    if path == f"{model}.use_ring_attention":
        return {f"{model}.use_flash_attention": True, "parallel_config.context_parallel": 16}
    if path == f"{model}.quantization_config.quant_method":
        return {f"{model}.quantization_config.weight_dtype": "int8"}
    if path.startswith(f"{model}.quantization_config."):
        return {f"{model}.quantization_config": {"quant_method": "ptq", "weight_dtype": "int8"}}
    if path == "parallel_config.expert_parallel":
        return {"parallel_config.data_parallel": value, "moe_config.expert_num": 8}
    if path.startswith("moe_config.") and path != "moe_config.expert_num":
        return {"moe_config.expert_num": 64}
    if path == stages:
        return {"parallel_config.micro_batch_num": value}
    lists = path == f"{model}.offset" or path.startswith("recompute_config.")
    return {stages: len(value), "parallel_config.micro_batch_num": 8} if lists and isinstance(value, list) else {}


def put(run: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a path; `[Type]` is the entry of a list with that type."""
    keys = path.split(".")
    for head in SELECTIONS:
        if path.startswith(head):
            keys = [*head[:-1].split("."), path.removeprefix(head)]
    at: Any = run
    for index, key in enumerate(keys[:-1]):
        if key.startswith("["):
            found = [each for each in at if each["type"] == key[1:-1]]
            at.extend([{"type": key[1:-1]}] if not found else [])
            at = (found or at)[-1]
        elif keys[index + 1].startswith("["):
            at = at.setdefault(key, [])
        else:
            at = at.setdefault(key, {})
    at[keys[-1]] = value


def run_with(path: str, value: Any) -> dict[str, Any]:
    run = copy.deepcopy(BASE)
    for other, its in beside(path, value).items():
        put(run, other, copy.deepcopy(its))
    put(run, path, copy.deepcopy(value))
    return run


def listed_name(path: str) -> str:
    """The name under which `fields_without_effect` would have the key."""
    for head in SELECTIONS:
        if path.startswith(head):
            path = head[:-1]
    inside = {
        "recompute_config": "parallel_config.recompute",
        "model.model_config.auto_map": "model.model_config.auto_map",
    }
    section = next((name for name in inside if path.startswith(name)), None)
    if section is not None:
        return inside[section] + path.removeprefix(section)
    parts = [as_meant(part.strip("[]")) for part in path.split(".")]
    return ".".join(parts).removeprefix("model.model_config.")


def is_field(name: str) -> bool:
    """Whether a name is a field of the config or of one of its parts."""
    first, _, rest = name.partition(".")
    part = {"parallel_config": ParallelConfig, "moe_config": MoEConfig}.get(first)
    if part is not None and rest.startswith("recompute."):
        return rest.removeprefix("recompute.") in RecomputeConfig.names()
    if part is not None:
        return rest in part.names()
    return ALIASES.get(first, first) in {*own_fields(LlamaConfig), "type"}


@pytest.mark.one_in(6)
@pytest.mark.parametrize("path", KEYS)
def test_every_published_key_and_value_is_planned_and_acts_or_is_listed(path):
    for value in KEYS[path]["values"]:
        run = run_with(path, value)
        listed: Mapping[str, str] = keys_without_effect(run)
        if merge_run(run) != merge_run(BASE):  # which is planned below
            config = LlamaConfig.from_mindformers(run)
            assert count(config).parameters.total > 0
            assert plan(config, train="quantization_config" not in path).memory.total > 0
            listed = config.fields_without_effect()
        name = listed_name(path)
        within = [each for each in listed if each == name or name.startswith(f"{each}.") or each.startswith(f"{name}.")]
        acts = is_field(name) or any(f"{name}.".startswith(f"{each}.") for each in ACTING) or path == "model.arch.type"
        assert acts or within or "quantization_config" in name, f"{path}: {value} is neither listed nor a field"


def test_a_run_without_any_of_them_is_planned():
    assert plan(PLAIN, train=True).memory.total > 0


def test_two_files_contradict_themselves():
    run = copy.deepcopy(BASE)
    run["model"]["model_config"] |= {"num_heads": 4, "n_kv_heads": 8}
    with pytest.raises(ConfigError, match=r"num_attention_heads \(4\) must be divisible by num_key_value_heads \(8\)"):
        LlamaConfig.from_mindformers(run)


def test_what_resembles_a_key_of_a_run_is_listed_with_it():
    run = copy.deepcopy(BASE) | {"run_mod": "train", "recompute_confg": {"recompute": True}, "mine": 1}
    listed = LlamaConfig.from_mindformers(run).fields_without_effect()
    assert listed["run_mod"] == 'no key of a run that is known here; did you mean "run_mode"?'
    assert listed["recompute_confg.recompute"] == 'no key of a run that is known here; did you mean "recompute_config"?'
    assert listed["mine"] == "no key of a run that is known here"


def test_their_own_misprint_is_taken_as_it_is_meant():
    run = copy.deepcopy(BASE) | {
        "callbacks": [{"type": "CheckpointMointor", "save_checkpoint_steps": 100, "integrated_save": False}]
    }
    config = LlamaConfig.from_mindformers(run)
    assert "callbacks.CheckpointMonitor.save_checkpoint_steps" not in config.fields_without_effect()
    assert "callbacks.CheckpointMonitor.integrated_save" in config.fields_without_effect()
    assert config.to_mindformers()["callbacks"] == run["callbacks"]


def test_a_bare_none_says_nothing_and_a_whole_float_is_an_int():
    run = copy.deepcopy(BASE)
    run["model"]["model_config"] |= {"n_kv_heads": "None", "ffn_dim_multiplier": "None", "num_layers": 4.0}
    run |= {"moe_config": {"expert_num": 8, "shared_expert_num": 8.0, "n_group": "None"}}
    config = LlamaConfig.from_mindformers(run)
    assert (config.n_kv_heads, config.ffn_dim_multiplier, config.num_layers) == (32, None, 4)
    assert (config.moe_config.shared_expert_num, config.moe_config.n_group) == (8, None)
    with pytest.raises(ConfigError, match=r"num_hidden_layers must be int, got 4\.5"):
        run["model"]["model_config"]["num_layers"] = 4.5
        LlamaConfig.from_mindformers(run)


def test_what_its_switch_leaves_unused_is_no_error_and_is_listed():
    run = copy.deepcopy(BASE)
    run["model"]["model_config"] |= {"extend_method": "None", "scaling_factor": 4, "llm_backend": "LLMBoost"}
    run["moe_config"] = {"expert_num": 8, "topk_bias_update_rate": 0.001}
    config = LlamaConfig.from_mindformers(run)
    listed = config.fields_without_effect()
    assert listed["scaling_factor"] == 'extend_method is "None": nothing is stretched'
    assert listed["llm_backend"] == "it is a backend of MindFormers' own"
    assert "balance_via_topk_bias is off" in listed["moe_config.topk_bias_update_rate"]
    model = config.to_mindformers()["model"]["model_config"]
    assert (model["scaling_factor"], model["llm_backend"]) == (4, "LLMBoost")


def test_a_run_comes_back_whole():
    run = copy.deepcopy(BASE) | {
        "runner_config": {"epochs": 2, "batch_size": 3, "gradient_accumulation_steps": 8, "sink_size": 1},
        "parallel": {
            "enable_parallel_optimizer": True,
            "full_batch": True,
            "parallel_optimizer_config": {"gradient_accumulation_shard": False, "parallel_optimizer_threshold": 64},
        },
        "optimizer": {"type": "AdamW", "betas": [0.9, 0.95]},
    }
    config = LlamaConfig.from_mindformers(run)
    written = config.to_mindformers()
    assert {name: written[name] for name in ("runner_config", "parallel", "optimizer", "run_mode")} == {
        name: run[name] for name in ("runner_config", "parallel", "optimizer", "run_mode")
    }
    assert LlamaConfig.from_mindformers(written) == config


def test_the_switch_of_the_run_is_the_one_that_shards():
    """Llama-2 7B as published for eight devices: float32 weights and states, dealt out to eight, and 4096 tokens."""
    run = copy.deepcopy(BASE) | {
        "runner_config": {"batch_size": 1},
        "parallel": {
            "enable_parallel_optimizer": True,
            "parallel_optimizer_config": {"gradient_accumulation_shard": False},
        },
        "parallel_config": {"data_parallel": 8},
    }
    types = {"compute_dtype": "bfloat16", "param_init_type": "float32", "softmax_compute_type": "float16"}
    run["model"]["model_config"] |= {"vocab_size": 32000, "use_flash_attention": True} | types
    held = 6_738_415_616 * 4

    def memory(run):
        return plan(LlamaConfig.from_mindformers(run), train=True).memory

    shared = memory(run)
    assert (shared.weights, shared.gradients) == (held // 8, held // 8)
    assert shared.optimizer == 2 * held // 8
    several = run | {"runner_config": {"batch_size": 1, "gradient_accumulation_steps": 8}}
    assert memory(several).gradients == held
    several["parallel"] = run["parallel"] | {"parallel_optimizer_config": {"gradient_accumulation_shard": True}}
    assert memory(several).gradients == held // 8
    run["parallel"] = {"enable_parallel_optimizer": False}
    run["model"]["model_config"]["parallel_optimizer"] = True
    assert memory(run).weights == held
    del run["parallel"]
    assert memory(run).weights == held // 8


def test_rows_are_as_long_as_the_run_says():
    run = copy.deepcopy(BASE)
    run["model"]["model_config"]["seq_length"] = 8192
    config = LlamaConfig.from_mindformers(run)
    assert (plan(config, train=True).work.context, plan(config, train=True, context=512).work.context) == (8192, 512)
