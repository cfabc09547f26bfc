"""A MindFormers run file as a `RunConfig`: each key of the published files acts, is listed, or is refused."""

import copy
from typing import Any

import pytest

from modelwright.configs.mindformers_run import ABOUT, IN_THE_MODEL, IN_THE_TRAINER, as_meant
from modelwright.configs.run import RunConfig
from modelwright.configs.run.mindformers import is_mindformers, translate
from modelwright.configs.run.mindformers.activations import leading
from modelwright.errors import ConfigError
from modelwright.families.read import config_of
from tests.configs.test_mindformers_runs import BASE, KEYS, run_with

TINY = {"type": "LlamaConfig", "hidden_size": 32, "num_layers": 4, "num_heads": 4, "vocab_size": 64, "seq_length": 24}


def run_of(**sections: Any) -> dict[str, Any]:
    return {"model": {"model_config": TINY | sections.pop("model_config", {})}} | sections


def values_of(**sections: Any) -> dict[str, Any]:
    return dict(translate(run_of(**sections)).paths)


def refusal_of(**sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        translate(run_of(**sections)).check(())
    return str(caught.value)


def listed(**sections: Any) -> dict[str, str]:
    return dict(translate(run_of(**sections)).without_effect)


def outcome(path: str, value: Any) -> str:
    """What becomes of one value of one key: `acts`, `listed` or `refused`."""
    run = run_with(path, value)
    found = translate(run)
    name = ".".join(as_meant(part.strip("[]")) for part in path.split("."))
    if found.refusals:
        return "refused"
    near = [each for each in found.without_effect if each == name or name.startswith(f"{each}.")]
    near += [each for each in found.without_effect if each.startswith(f"{name}.")]
    if near:
        return "listed"
    known = name.startswith("model.") or any(
        name == each or name.startswith(f"{each}.") for each in IN_THE_MODEL | IN_THE_TRAINER
    )
    return "acts" if known else "forgotten"


@pytest.mark.parametrize("path", KEYS)
def test_every_published_key_has_one_outcome(path):
    for value in KEYS[path]["values"]:
        assert outcome(path, value) in ("acts", "listed", "refused"), f"{path}: {value}"


def test_the_published_keys_have_these_outcomes():
    """Each of a few sections by hand, so that the test above cannot be right by listing everything."""
    for path, value, expected in [
        ("runner_config.epochs", 2, "acts"),
        ("runner_config.sink_size", 2, "listed"),
        ("run_mode", "predict", "refused"),
        ("run_mode", "finetune", "acts"),
        ("load_checkpoint", "{path}/llama2_13b.ckpt", "refused"),
        ("only_save_strategy", False, "acts"),
        ("optimizer.type", "AdamWeightDecayX", "refused"),
        ("optimizer.type", "FP32StateAdamWeightDecay", "acts"),
        ("parallel.pipeline_config.pipeline_scheduler", "seqpipe", "refused"),
        ("train_dataset.data_loader.type", "MindDataset", "refused"),
        ("train_dataset.numa_enable", False, "listed"),
        ("eval_dataset.data_loader.type", "MindDataset", "listed"),
        ("callbacks.[CheckpointMointor].save_checkpoint_steps", 1000, "acts"),
        ("callbacks.[ObsMonitor].type", "ObsMonitor", "listed"),
        ("recompute_config.select_recompute.feed_forward\\.mul", [14, 14], "acts"),
        ("recompute_config.select_recompute.feed_forward\\.w2\\.reshape", [14, 14], "listed"),
        ("recompute_config.select_recompute.feed_forward\\.activate\\.silu", True, "refused"),
        ("context.mode", 0, "listed"),
    ]:
        assert outcome(path, value) == expected, path


def test_what_acts_is_asked_for_and_what_is_asked_for_acts():
    """The table that listings are made of, and the code that reads, say the same."""
    run = copy.deepcopy(BASE) | {
        "do_eval": True,
        "optimizer": {"type": "AdamW"},
        "train_dataset": {"data_loader": {"type": "CommonDataLoader"}},
        "eval_dataset": {"data_loader": {"type": "BlendedMegatronDatasetDataLoader"}},
        "callbacks": [{"type": "CheckpointMonitor"}, {"type": "ProfileMonitor"}],
    }
    asked = set()
    for kind in ("ConstantWithCoolDownLR", "WarmUpStableDecayLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts"):
        asked |= translate(run | {"lr_schedule": {"type": kind}}).asked
    swapped = {"train_dataset": run["eval_dataset"], "eval_dataset": run["train_dataset"]}
    asked |= translate(run | swapped | {"lr_schedule": {"type": "CosineWithWarmUpLR"}}).asked
    asked |= translate(run | {"eval_dataset": {"data_loader": {"type": "MindDataset"}}}).asked
    asked |= translate(run | {"train_dataset": {"data_loader": {"type": "MindDataset"}}}).asked
    whole = {"callbacks.TopkBiasBalanceCallback", "callbacks.MoEDropRateCallback"}
    types = {each for each in IN_THE_TRAINER if each.startswith("callbacks.") and each.endswith(".type")}
    assert IN_THE_TRAINER - asked - whole - types == set()
    beyond = {each for each in asked if not any(f"{each}.".startswith(f"{name}.") for name in IN_THE_TRAINER)}
    assert beyond - IN_THE_MODEL - ABOUT.keys() == {"processor.tokenizer.type"}  # which a refusal names


def test_it_is_recognised_by_its_model_config():
    assert is_mindformers(run_of()) and not is_mindformers({"model": {"path": "x"}}) and not is_mindformers({})


def test_a_run_becomes_one_of_ours(tmp_path):
    import yaml

    run = run_of(
        seed=7,
        output_dir="./out",
        runner_config={"epochs": 3, "batch_size": 2, "gradient_accumulation_steps": 4, "stop_step": 9},
        micro_batch_interleave_num=2,
        optimizer={"type": "AdamW", "betas": [0.9, 0.95], "weight_decay": 0.1},
        lr_schedule={"type": "CosineWithWarmUpLR", "learning_rate": 1e-5, "warmup_ratio": 0.03, "lr_end": 1e-6},
        calculate_per_token_loss=True,
        train_dataset={"data_loader": {"type": "CommonDataLoader", "path": "json", "data_files": "rows.json"}},
        callbacks=[{"type": "MFLossMonitor", "per_print_times": 5}],
        model_config={"compute_dtype": "bfloat16", "param_init_type": "float32"},
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    config = RunConfig.read(tmp_path / "run.yaml", ["parallel.model=1", "optimizer.lr=2e-5"])
    assert (config.seed, config.output, config.epochs, config.limits.stop) == (7, "./out", 3, 9)
    assert (config.batch.micro, config.batch.global_, config.accumulation()) == (2, 16, 8)
    assert (config.optimizer.eps, config.optimizer.lr, config.optimizer.betas) == (1e-6, 2e-5, (0.9, 0.95))
    assert (config.optimizer.weight_decay, config.optimizer.decay) == (0.1, "matrices_and_routers")
    schedule = config.schedule
    assert (schedule.name, schedule.warmup, schedule.end, schedule.counts_from) == ("CosineWithWarmUpLR", 0.03, 1e-6, 0)
    assert (config.precision.compute, config.model.dtype) == ("bfloat16", "float32")
    assert (config.loss.per_token, config.log.every, config.checkpoint.every) == (True, 5, None)
    assert config.data.train[0].path == "rows.json"
    assert config_of(config.model.config or {}).hidden_size == 32
    assert RunConfig.of(config.to_dict()) == config
    assert config.check_ranks(1) == 1


def test_weights_are_read_from_a_folder_and_a_run_goes_on_from_our_checkpoints(tmp_path):
    values = values_of(load_checkpoint=str(tmp_path))
    assert values["model.config"]["checkpoint_name_or_path"] == str(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    values = values_of(load_checkpoint=str(tmp_path), resume_training=True)
    assert values["checkpoint.resume"] == str(tmp_path)
    assert values_of(resume_training=True)["checkpoint.resume"] == "auto"
    assert values_of()["checkpoint.resume"] == "none"


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"run_mode": "predict"}, 'run_mode "predict" starts no training: use modelwright generate'),
        (
            {"use_parallel": False, "parallel_config": {"data_parallel": 8}},
            "data_parallel (8) needs use_parallel: True and parallel_mode 1, got False and 1",
        ),
        (
            {"parallel": {"parallel_mode": 0}, "parallel_config": {"model_parallel": 2}},
            "model_parallel (2) needs use_parallel: True and parallel_mode 1, got True and 0",
        ),
        (
            {"load_checkpoint": "a/b.ckpt"},
            "load_checkpoint a/b.ckpt is a MindSpore .ckpt, a pickle-like protobuf: save it with load_ckpt_format "
            "safetensors",
        ),
        (
            {"only_save_strategy": True},
            "only_save_strategy (True) writes MindSpore's strategy files, of which torch has none",
        ),
        (
            {"optimizer": {"type": "Came"}},
            'optimizer.type "Came" is not one of AdamW, FusedAdamW, FP32StateAdamWeightDecay, Adam, SGD, Adagrad, '
            "Adafactor",
        ),
        (
            {"model_config": {"pp_interleave_num": 2}},
            "pp_interleave_num (2) needs parallel.pipeline_config.pipeline_interleave: True, got False",
        ),
        (
            {"parallel_config": {"seq_split_num": 2, "micro_batch_num": 3}},
            "seq_split_num (2) sends pieces of one sequence through the pipeline, for which torch has no schedule: set "
            "it to 1 and micro_batch_num to 6",
        ),
        (
            {"parallel_config": {"model_parallel": 2}, "moe_config": {"expert_num": 4}},
            "model_parallel (2) with expert_num (4) needs use_seq_parallel: True, got False",
        ),
        (
            {"train_dataset": {"data_loader": {"type": "MindDataset", "dataset_dir": "/d"}}},
            'data_loader.type "MindDataset" reads files that only MindSpore reads: convert /d to JSONL, parquet or '
            "Megatron .bin/.idx",
        ),
        (
            {"callbacks": [{"type": "CheckpointMonitor", "enc_key": "k"}]},
            "enc_key: encrypted checkpoints are not written",
        ),
        (
            {"processor": {"tokenizer": {"type": "LlamaTokenizer", "vocab_file": "/nowhere/tokenizer.model"}}},
            "processor.tokenizer LlamaTokenizer has no tokenizer.json in /nowhere",
        ),
    ],
)
def test_a_refusal_has_its_sentence(sections, sentence):
    assert refusal_of(**sections) == sentence


def test_an_unknown_pattern_is_refused_with_the_table():
    said = refusal_of(recompute_config={"select_recompute": {"feed_forward\\.gelu": True}})
    assert said.startswith(
        'select_recompute pattern "feed_forward\\.gelu" matches no operation of a layer; there are feed_forward.mul, '
    )


def test_the_ranks_must_be_those_of_the_degrees():
    config = RunConfig.of(translate(run_of(parallel_config={"data_parallel": 4, "model_parallel": 2})).values)
    from dataclasses import replace

    from modelwright.configs.run.origin import Origin

    config = replace(config, origin=Origin(mindformers=True))
    assert config.check_ranks(8) == 4
    with pytest.raises(ConfigError) as caught:
        config.check_ranks(1)
    assert str(caught.value) == (
        "data_parallel × model_parallel × context_parallel × pipeline_stage (4·2·1·1 = 8) must equal the ranks (1)"
    )


def test_a_refusal_is_taken_back_by_a_key_beside_the_file():
    found = translate(run_of(train_dataset={"data_loader": {"type": "MindDataset"}}))
    found.check(["data.train"])
    found.check(["data.train.0.path"])
    with pytest.raises(ConfigError):
        found.check(["data.eval"])


@pytest.mark.parametrize(
    ("counts", "table", "numbers"),
    [
        (True, ((2, 2),), (0, 1, 2, 3)),
        ([1, 2], ((2, 2),), (0, 2, 3)),
        ([[1, 0], [0, 1]], ((1, 2), (2, 1)), (0, 5)),
        ([9], ((3,),), (0, 1, 2)),
    ],
)
def test_counts_of_leading_layers_are_numbers_of_layers(counts, table, numbers):
    assert leading(counts, table, "recompute") == numbers


GATED = ("feed_forward.product", "feed_forward.activation")


def test_recomputed_and_moved_activations():
    assert values_of(recompute_config={"recompute": True})["recompute"] == "full"
    assert values_of(recompute_config={"recompute": False})["recompute"] == "none"
    several = values_of(recompute_config={"recompute": [1], "select_recompute": [3]})["recompute"]
    assert several == {"layers": [0], "operations": {name: [1, 2] for name in GATED}}
    without = values_of(recompute_config={"select_recompute": True, "select_recompute_exclude": [2]})["recompute"]
    assert without == {"layers": [], "operations": {name: [2, 3] for name in GATED}}
    assert values_of(swap_config={"swap": False})["swap"] is None
    moved = values_of(swap_config={"swap": True, "layer_swap": [{"layers": [0, 2], "backward_prefetch": 3}]})["swap"]
    assert moved == {"prefetch": 3, "layers": [0, 2], "operations": {}}
    alone = values_of(swap_config={"swap": True})["swap"]
    assert alone == {"prefetch": 1, "layers": [], "operations": {"attention.core": [0, 1, 2, 3]}}
    both = {"swap": True, "layer_swap": [{"layers": [0]}], "op_swap": [{"op_name": ".*norm", "layers": [0, 1]}]}
    assert values_of(swap_config=both)["swap"]["operations"] == {"attention_norm": [1], "ffn_norm": [1]}


def test_the_loss_scale_acts_in_float16_alone():
    scale = {"type": "DynamicLossScaleUpdateCell", "loss_scale_value": 4096, "scale_factor": 2, "scale_window": 10}
    wrapper = {"scale_sense": scale, "use_clip_grad": False, "max_grad_norm": 2.0}
    values = values_of(runner_wrapper=wrapper, model_config={"compute_dtype": "float16"})
    assert values["precision.scale"] == {"init": 4096.0, "factor": 2.0, "window": 10, "fixed": False}
    assert values["clip"] is None
    idle = listed(runner_wrapper=wrapper, model_config={"compute_dtype": "bfloat16"})
    assert "runner_wrapper.scale_sense.scale_window" in idle and "runner_wrapper.max_grad_norm" in idle


def test_rows_of_a_megatron_blend():
    loader = {"type": "BlendedMegatronDatasetDataLoader", "config": {"data_path": ["0.3", "a", "0.7", "b"]}}
    values = values_of(train_dataset={"data_loader": loader, "num_parallel_workers": 3, "drop_remainder": False})
    assert values["data.train"] == [
        {"path": "a", "format": "megatron", "weight": 0.3},
        {"path": "b", "format": "megatron", "weight": 0.7},
    ]
    assert (values["data.workers"], values["data.drop_last"]) == (3, False)


def test_evaluation_is_on_where_it_is_asked_for():
    rows = {"data_loader": {"type": "CommonDataLoader", "data_files": ["held.json"]}}
    values = values_of(do_eval=True, eval_step_interval=50, eval_epoch_interval=-1, eval_dataset=rows)
    assert (values["evaluate.every"], values["evaluate.epochs"]) == (50, None)
    assert values["data.eval"] == [{"path": "held.json", "format": "auto"}]
    assert "data.eval" not in values_of(eval_dataset=rows) and listed(eval_dataset=rows, do_eval=False)
    assert values_of(run_mode="eval", eval_dataset=rows)["evaluate.only"]
    assert refusal_of(do_eval=True, eval_dataset=rows, metric={"type": "EmF1Metric"}) == (
        'metric.type "EmF1Metric" is not one of PerplexityMetric'
    )


def test_what_resembles_a_key_is_listed_with_it():
    assert listed(runner_confg={"epochs": 2})["runner_confg.epochs"].endswith('did you mean "runner_config.epochs"?')


def test_a_split_names_the_files_that_are_read():
    """As the `datasets` library, which such a run hands both to: without a split, those of "train"."""
    files = {"train": ["a.json", "b.json"], "test": "c.json"}

    def paths(**loader):
        data = {"data_loader": {"type": "CommonDataLoader", "path": "json", "data_files": files} | loader}
        return [each["path"] for each in values_of(train_dataset=data)["data.train"]]

    assert paths() == paths(split="train") == ["a.json", "b.json"] and paths(split="test") == ["c.json"]
    assert paths(data_files="d.json", split="train") == ["d.json"]
    for loader in ({"split": "validation"}, {"data_files": "d.json", "split": "test"}):
        data = {"data_loader": {"type": "CommonDataLoader", "path": "json", "data_files": files} | loader}
        assert "split must be" in refusal_of(train_dataset=data)
