"""A run config: what a file, its base and overrides make of it, its rules, and the way back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.configs.run import (
    CheckpointPart,
    LoraPart,
    RecomputePart,
    RunConfig,
    SkipPart,
    SourcePart,
)
from modelwright.configs.run.origin import Origin
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.llama.config import LlamaConfig

SMALLEST = {"model": {"path": "model"}, "steps": 10, "output": "runs/first"}
FULL = """
model: {path: deepseek-vl2-tiny, dtype: float32, init: null}
tune:
  freeze: [vision, projector]
  lora: {rank: 8, targets: [attention, experts]}
  rates: {experts: 2e-6}
data:
  train: [{path: chats.jsonl, format: auto, weight: 1.0}, more.jsonl]
  eval: [{path: held_out.jsonl, name: held_out}]
  seq_length: 512
batch: {micro: 2, global: 64}
optimizer: {name: adamw, lr: 2e-5, betas: [0.9, 0.95]}
schedule: {name: cosine, warmup: 0.03, end: 0.1}
steps: 1000
recompute: {layers: [0, 1], save: [matmul]}
checkpoint: {every: 200, async: false}
limits: {nonfinite: {skip: 5}, patience: 10m}
output: runs/first
"""


def run_of(**values) -> RunConfig:
    return RunConfig.of(SMALLEST | values)


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_file_is_read_into_parts(tmp_path):
    run = RunConfig.read(write(tmp_path, FULL))
    assert run.data.train == (SourcePart("chats.jsonl"), SourcePart("more.jsonl"))
    assert run.batch.global_ == 64 and run.accumulation() == 32 and run.accumulation(4) == 8
    assert run.tune is not None and run.tune.lora == LoraPart(rank=8, targets=("attention", "experts"))
    assert run.recompute == RecomputePart(layers=(0, 1), save=("matmul",))
    assert run.checkpoint == CheckpointPart(async_=False)
    assert run.limits.nonfinite == SkipPart(5) and run.limits.skips == 5 and run.limits.patience == 600
    assert run.optimizer.lr == 2e-5 and run.schedule.warmup_steps(1000) == 30


def test_the_way_back_is_exact(tmp_path):
    for run in (RunConfig.read(write(tmp_path, FULL)), run_of()):
        assert RunConfig.of(run.to_dict()) == run


def test_overrides_are_yaml_at_a_path(tmp_path):
    path = write(tmp_path, FULL)
    run = RunConfig.read(path, ["optimizer.lr=3e-4", "data.train.1.weight=2", "epochs=3", "recompute=full"])
    assert (run.optimizer.lr, run.epochs, run.steps, run.recompute) == (3e-4, 3, None, "full")
    assert RunConfig.read(path, ["model.config={model_type: llama}"]).model.path is None


def test_a_base_is_inherited_key_by_key(tmp_path):
    write(tmp_path, FULL, "base.yaml")
    run = RunConfig.read(write(tmp_path, "base: base.yaml\noptimizer: {lr: 1e-3}\nepochs: 2"))
    assert (run.optimizer.lr, run.optimizer.betas, run.epochs, run.steps) == (1e-3, (0.9, 0.95), 2, None)
    with pytest.raises(ConfigError, match="base leads back"):
        RunConfig.read(write(tmp_path, "base: run.yaml"))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("lr=1", 'unknown key "lr"; did you mean "optimizer.lr"?'),
        ("optimizer.lrr=1", 'unknown key "optimizer.lrr"; did you mean "lr"?'),
        ("optimiser.lr=1", 'unknown key "optimiser.lr"; did you mean "optimizer.lr"?'),
        ("optimizer", "an override is key.sub=value, such as optimizer.lr=1e-4; got 'optimizer'"),
        ("data.train.7.weight=1", "train.7 must be one of the 2 entries, the first of which is 0"),
        ("batch=3", "batch must be a mapping of its keys, got 3"),
    ],
)
def test_a_wrong_override_is_told(tmp_path, override, sentence):
    with pytest.raises(ConfigError) as caught:
        RunConfig.read(write(tmp_path, FULL), [override])
    assert str(caught.value) == sentence


RULES = [
    (
        {"model": {"path": "a", "config": {}}},
        "model: a model is either read from a path or built from a config: exactly one of path and config must be "
        "given, got path and config",
    ),
    (
        {"model": {}},
        "model: a model is either read from a path or built from a config: exactly one of path and config must be "
        "given, got neither",
    ),
    ({"model": {"path": "a", "dtype": "int8"}}, "model: dtype must be one of"),
    ({"steps": None}, "exactly one of steps and epochs must be given, got neither"),
    ({"epochs": 2}, "exactly one of steps and epochs must be given, got steps (10) and epochs (2)"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"clip": 0}, "clip must be above 0 or null, got 0.0"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
    ({"compile": "all"}, "compile must be False or 'layers', got 'all' (str)"),
    ({"batch": {"micro": 3, "global": 8}}, "batch: global (8) must be divisible by micro (3)"),
    ({"data": {"seq_length": 1}}, "data: seq_length must be at least 2, got 1"),
    ({"data": {"pack": "all"}}, "data: pack must be 'documents' or 'none', got 'all' (str)"),
    ({"data": {"train": ["a", {"path": "a"}]}}, "data: train names a more than once: give the sources different names"),
    ({"data": {"train": [{"path": "a", "weight": 0}]}}, "data.train[0]: weight must be above 0, got 0.0"),
    ({"data": {"train": [{"weight": 2}]}}, "data.train[0] needs path, and this one has none"),
    ({"loss": {"chunk": 0}}, "loss: chunk must be at least 1, got 0"),
    ({"optimizer": {"name": "adamx"}}, 'optimizer: name must be one of "adamw", "adam", "sgd", "adagrad"'),
    ({"optimizer": {"lr": 0}}, "optimizer: lr must be above 0, got 0.0"),
    ({"optimizer": {"betas": [0.9, 1]}}, "optimizer: betas must be in [0, 1), got [0.9, 1.0]"),
    (
        {"optimizer": {"name": "sgd", "state": "int8"}},
        'optimizer: state "int8" needs the optimizer adam or adamw, got "sgd"',
    ),
    ({"schedule": {"name": "cosin"}}, 'schedule: name must be one of "cosine", "linear"'),
    (
        {"schedule": {"warmup": 1.5}},
        "schedule: warmup is a share of the run below 1, or a whole number of steps; got 1.5",
    ),
    (
        {"schedule": {"end": 2}},
        "schedule: end must be at most 1, the share of the learning rate that is left, got 2.0",
    ),
    ({"precision": {"compute": "fp8"}}, "precision: compute must be one of"),
    ({"precision": {"scale": {"factor": 1}}}, "precision.scale: factor must be above 1, got 1.0"),
    ({"parallel": {"model": 0}}, "parallel: model must be at least 1 or auto, got 0"),
    ({"parallel": {"schedule": "zbv"}}, 'parallel: schedule "zbv" needs virtual 2, got 1'),
    (
        {"parallel": {"pipeline": 4, "micro_batches": 2}},
        "parallel: micro_batches (2) must be at least pipeline, the stages (4)",
    ),
    (
        {"parallel": {"pipeline": 2, "virtual": 2, "schedule": "dualpipev", "micro_batches": 3}},
        "parallel: micro_batches (3) must be at least pipeline x virtual stages (4)",
    ),
    (
        {"parallel": {"schedule": "zero_bubble"}, "compile": "layers"},
        'schedule "zero_bubble" splits a backward pass by inputs and weights, so it needs compile false, got layers',
    ),
    (
        {"parallel": {"schedule": "zero_bubble"}, "tune": {"freeze": ["vision"]}},
        'schedule "zero_bubble" splits a backward pass by inputs and weights, so it needs every layer to train, '
        "and tune freezes some",
    ),
    (
        {"parallel": {"context": 3}, "data": {"seq_length": 64}},
        "data.seq_length (64) must be divisible by 2 x context (6)",
    ),
    (
        {"parallel": {"context": 2, "model": 3}, "data": {"seq_length": 64}},
        "data.seq_length (64) must be divisible by 2 x context x model (12)",
    ),
    ({"recompute": {"operations": {"mul": [0]}}}, 'recompute: operations must be one of "attention_norm", "attention"'),
    (
        {"swap": {"operations": {"attention": 3}}},
        "swap: operations attention must list numbers of layers from 0 on, got 3",
    ),
    ({"recompute": {"layers": [-1]}}, "recompute: layers must be numbers of layers from 0 on, got -1"),
    ({"swap": {"prefetch": 0}}, "swap: prefetch must be at least 1, got 0"),
    ({"checkpoint": {"keep": 0}}, "checkpoint: keep must be at least 1, got 0"),
    ({"checkpoint": {"minutes": 0}}, "checkpoint: minutes must be above 0, got 0.0"),
    ({"log": {"profile": {"first": 5, "last": 4}}}, "log.profile: last (4) must be at least first (5)"),
    ({"evaluate": {"every": 0}}, "evaluate: every must be at least 1, got 0"),
    ({"limits": {"spike": 1}}, "limits: spike must be above 1, got 1.0"),
    (
        {"limits": {"patience": "soon"}},
        'limits: patience must be a time such as 600, "600s", "10m" or "2h", got \'soon\'',
    ),
    ({"limits": {"nonfinite": {"skip": 0}}}, "limits.nonfinite: skip must be at least 1, got 0"),
    (
        {"tune": {"freeze": ["a"], "train": ["b"]}},
        "tune: exactly one of freeze and train may be given, got freeze ['a'] and train ['b']",
    ),
    (
        {"tune": {"freeze": ["vision"], "rates": {"vision": 1e-5}}},
        "tune: vision has a rate (1e-05) and stands in freeze: it must be in one of them",
    ),
    ({"tune": {"lora": {"rank": 0}}}, "tune.lora: rank must be at least 1, got 0"),
]


@pytest.mark.parametrize(("values", "sentence"), RULES)
def test_a_rule_is_told_with_its_values(values, sentence):
    with pytest.raises(ConfigError) as caught:
        run_of(**values)
    assert str(caught.value).startswith(sentence)


def test_what_a_run_must_say():
    with pytest.raises(ConfigError) as caught:
        RunConfig.of({"steps": 3})
    assert str(caught.value) == "a run needs model and output, and this one has none"


def test_a_misspelt_key_is_refused_wherever_it_stands():
    for values, sentence in (
        ({"optimser": {}}, 'unknown key "optimser"; did you mean "optimizer"?'),
        ({"log": {"evry": 3}}, 'unknown key "log.evry"; did you mean "every"?'),
        ({"data": {"train": [{"pth": "a"}]}}, 'unknown key "data.train[0].pth"; did you mean "path"?'),
        ({"batch": {"global_": 3}}, 'unknown key "batch.global_"; did you mean "global"?'),
    ):
        with pytest.raises(ConfigError) as caught:
            run_of(**values)
        assert str(caught.value) == sentence


def test_the_ranks_must_be_those_of_the_degrees():
    assert run_of().check_ranks(1) == 1 and run_of(batch={"global": 8}).check_ranks(8) == 8
    assert run_of(parallel={"model": 2}, batch={"global": 4}).check_ranks(8) == 4
    assert run_of(batch={"global": 8}, limits={"restarts": 2}).check_ranks(8) == 8
    with pytest.raises(ConfigError, match=r"limits.restarts \(2\) needs several ranks.*got 1"):
        run_of(limits={"restarts": 2}).check_ranks(1)
    for degrees, ranks, sentence in (
        (
            {"model": 8},
            1,
            "data x shard x model x context x pipeline (1 x 1 x 8 x 1 x 1 = 8) must divide the ranks (1); parallel "
            "says data auto, shard auto, model 8, context 1, pipeline 1",
        ),
        (
            {"data": 2, "shard": 1, "pipeline": 2},
            1,
            "data x shard x model x context x pipeline (2 x 1 x 1 x 1 x 2 = 4) must equal the ranks (1); parallel says "
            "data 2, shard 1, model 1, context 1, pipeline 2",
        ),
        ({}, 3, "batch.global (4) must be divisible by batch.micro x data ranks (3)"),
    ):
        with pytest.raises(ConfigError) as caught:
            run_of(parallel=degrees, batch={"global": 4}).check_ranks(ranks)
        assert str(caught.value) == sentence


def test_what_means_nothing_on_one_rank_is_listed():
    assert run_of().fields_without_effect() == {}
    parallel = {"offload": True, "schedule": "gpipe", "model": 1}
    run = run_of(parallel=parallel, precision={"reduce": "bfloat16"}, swap={"prefetch": 2})
    found = run.fields_without_effect()
    assert found.keys() == {"parallel.offload", "parallel.schedule", "precision.reduce"}
    assert "one rank trains" in found["parallel.offload"]
    assert run.fields_without_effect(ranks=2) == {}


def test_the_models_own_config_fills_what_the_run_leaves_out(tmp_path):
    model = LlamaConfig(
        batch_size=2,
        seq_length=512,
        calculate_per_token_loss=True,
        parallel_config={"recompute": {"recompute": [1]}, "data_parallel": 1},
        num_hidden_layers=2,
    )
    stated = model.run_values()
    assert stated["batch.micro"] == 2 and stated["data.seq_length"] == 512 and stated["recompute"]["layers"] == [0]
    path = write(tmp_path, "model: {path: m}\nsteps: 2\noutput: o\n")
    filled = RunConfig.read(path).filled_by(model)
    assert (filled.batch.micro, filled.data.seq_length) == (2, 512)
    assert filled.recompute == RecomputePart(layers=(0,))
    same = RunConfig.read(path, ["data.seq_length=512"]).filled_by(model)
    assert same.data.seq_length == 512
    with pytest.raises(ConfigError) as caught:
        RunConfig.read(path, ["data.seq_length=4096"]).filled_by(model)
    assert str(caught.value) == (
        "data.seq_length is 4096 in the run and 512 in the config of the model: give it once, or the same in both"
    )
    assert LlamaConfig().run_values() == {} and DeepseekV2Config().run_values() == {}


def test_what_follows_from_a_models_sizes_is_not_stated_of_a_run():
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    short = LlamaConfig(**sizes, max_position_embeddings=256)
    again = LlamaConfig.from_dict(short.to_dict())
    assert short.seq_length == again.seq_length == 256 and short.run_values() == again.run_values() == {}
    assert LlamaConfig(**sizes, max_position_embeddings=256, seq_length=64).run_values() == {"data.seq_length": 64}
    values = {"model": {"path": "m"}, "steps": 2, "output": "o"}
    for model, usual in (
        (short, 256),
        (LlamaConfig(**sizes, max_position_embeddings=131072), 4096),
        (DeepseekV2Config(max_position_embeddings=512), 512),
    ):
        assert RunConfig.of(values).filled_by(model).data.seq_length == usual
        said = RunConfig.of(values | {"data": {"seq_length": 600}}).filled_by(model)
        assert said.data.seq_length == 600 == said.filled_by(model).data.seq_length
    built = replace(RunConfig.of(values), origin=Origin())  # part by part, so that every value is stated
    assert built.filled_by(short) is built


PARTS = st.fixed_dictionaries(
    {"model": st.sampled_from([{"path": "m"}, {"config": {"model_type": "llama"}, "init": 3}]), "output": st.just("o")},
    optional={
        "data": st.fixed_dictionaries(
            {"train": st.sampled_from(["a.jsonl", ["a", "b"], [{"path": "a", "weight": 2, "name": "c"}]])},
            optional={"seq_length": st.integers(2, 9999), "labels": st.sampled_from(["assistant", "last", "all"])},
        ),
        "batch": st.integers(1, 5).map(lambda micro: {"micro": micro, "global": 3 * micro}),
        "optimizer": st.fixed_dictionaries({}, optional={"lr": st.floats(1e-9, 1.0), "name": st.just("lion")}),
        "schedule": st.fixed_dictionaries(
            {"name": st.sampled_from(["wsd", "CosineWithWarmUpLR"])}, optional={"warmup": st.floats(0, 0.9)}
        ),
        "tune": st.sampled_from([None, {"freeze": ["vision"]}, {"lora": {"rank": 4}, "rates": {"experts": 1e-5}}]),
        "recompute": st.sampled_from(["full", {"layers": [0, 2]}, {"operations": {"ffn_norm": [1]}}]),
        "swap": st.sampled_from([None, {"layers": [1], "operations": {"attention": [0]}}]),
        "limits": st.sampled_from([{"nonfinite": {"skip": 2}}, {"patience": "2h"}, {"spike": 3.0, "spike_of": "norm"}]),
        "precision": st.sampled_from([{"compute": "float16", "scale": {"init": 8}}, {"reduce": "bfloat16"}]),
        "compile": st.sampled_from([False, "layers"]),
        "clip": st.none() | st.floats(0.1, 9),
    },
)


@pytest.mark.slow
@given(PARTS, st.sampled_from([{"steps": 5}, {"epochs": 2}]))
@settings(max_examples=60, deadline=None)
def test_every_run_comes_back_from_what_it_writes(values, length):
    run = RunConfig.of(values | length)
    written = run.to_dict()
    assert RunConfig.of(written) == run
    assert RunConfig.of(json.loads(json.dumps(written))) == run
    assert RunConfig.of(yaml.safe_load(yaml.safe_dump(written))) == run
