"""A run config: what a file, its base and overrides make of it, its rules, and the way back."""

from pathlib import Path

import pytest

from modelwright.configs.run import (
    CheckpointPart,
    LoraPart,
    RecomputePart,
    RunConfig,
    SkipPart,
    SourcePart,
)
from modelwright.errors import ConfigError

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
    assert run.steps_of(7) == 1000 and run_of(steps=None, epochs=3).steps_of(7) == 21


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
