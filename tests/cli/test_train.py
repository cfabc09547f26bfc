"""``modelwright train``: its plan, what it refuses before anything is written, and its exit codes."""

import json
import math
from pathlib import Path

import pytest

from modelwright import zoo
from modelwright.configs.run import LoraPart, RunConfig, TunePart
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from modelwright.training import trainer as trainers
from modelwright.training.results import Ended
from modelwright.training.tuning import save_adapter, settle

LLAMA = """
model:
  config: {model_type: llama, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 96,
           vocab_size: 320, num_key_value_heads: 2}
data: {train: rows.jsonl, seq_length: 64}
batch: {micro: 2, global: 8}
steps: 10
output: out
"""
MINDFORMERS = """
run_mode: finetune
use_parallel: False
runner_config: {epochs: 2, batch_size: 2, sink_mode: true}
train_dataset: {data_loader: {type: CommonDataLoader, data_files: rows.json}}
callback: [{type: MFLossMonitor}]
model:
  model_config: {type: LlamaConfig, hidden_size: 64, num_layers: 2, num_heads: 4, vocab_size: 320, seq_length: 64}
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(LLAMA)
    (tmp_path / "mindformers.yaml").write_text(MINDFORMERS)
    return tmp_path


def test_a_dry_run_prints_the_plan_and_writes_nothing(run, here):
    before = sorted(here.iterdir())
    ended = run("train", "run.yaml", "--dry-run", "optimizer.lr=3e-4", "tune.freeze=[embedding, norms]")
    assert (ended.code, ended.err) == (0, "")
    lines = [line.split() for line in ended.out.splitlines()]
    assert ended.out.startswith("run.yaml: llama, 2 layers, 103 K parameters, 81.9 K of which train\n")
    assert ["embedding", "20,480", "0"] in lines and ["total", "102,720", "81,920"] in lines
    assert ["steps", "10"] in lines and ["tokens", "at", "most", "5,120"] in lines
    assert "8 rows of up to 64 tokens: micro-batches of 2, 4 of them summed" in ended.out
    assert "adamw 0.0003, cosine" in ended.out
    assert sorted(here.iterdir()) == before


def test_a_dry_run_of_an_adapter_trains_the_adapter_alone(run, here):
    model = LlamaForCausalLM(LlamaConfig(**RunConfig.read(here / "run.yaml").model.config))
    settle(model, TunePart(lora=LoraPart(rank=4, targets=("attention",))))
    save_adapter(model, here / "adapter")
    ended = run("train", "run.yaml", "--dry-run", "model.adapter=adapter")
    assert (ended.code, ended.err) == (0, "")
    pairs = 4 * (64 + 64 + 64 + 32) * 2 * 2  # ranks of q, k, v and o into and out of 64 and 32, in two layers
    assert ["total", f"{102_720 + pairs:,}", f"{pairs:,}"] in [line.split() for line in ended.out.splitlines()]
    missing = run("train", "run.yaml", "--dry-run", "model.adapter=elsewhere")
    assert (missing.code, "elsewhere holds no adapter" in missing.err) == (2, True)


def test_a_dry_run_lists_what_nothing_reads_and_which_files_are_missing(run, here):
    idle = ("optimizer.momentum=0.9", "schedule.cycles=2", "schedule.name=linear")
    ended = run("train", "run.yaml", "--dry-run", *idle, "data.train=[nowhere.jsonl]")
    assert (ended.code, ended.err) == (0, "")
    assert f"there is no file or folder {here / 'nowhere.jsonl'}" in ended.out
    told = ended.out.split("no effect: ")[1]
    assert "optimizer.momentum (adamw has no use for it)" in told and "schedule.cycles (linear" in told


def test_a_dry_run_of_mindformers_lists_what_has_no_effect(run, here):
    ended = run("train", "mindformers.yaml", "--dry-run")
    assert ended.code == 0
    assert "runner_config.sink_mode (it is about MindSpore's runtime)" in ended.out
    assert 'callback.MFLossMonitor.type (no key of a run that is known here; did you mean "callbacks' in ended.out
    assert "the mean of each micro-batch" in ended.out


def test_a_plan_for_many_ranks(run, here):
    ended = run("train", "run.yaml", "--dry-run", "--ranks", "4", "parallel.model=2")
    assert ended.code == 0 and "data 2 x model 2 x pipeline 1 x context 1, expert 1, sharded" in ended.out
    ended = run("train", "run.yaml", "--dry-run", "--ranks", "4", "parallel.model=3")
    assert ended.code == 2 and "= 3) must divide the ranks (4)" in ended.err
    ended = run("train", "run.yaml", "--dry-run", "--ranks", "8", "parallel.model=8")
    assert ended.code == 2 and "the number of attention heads (4) must be divisible by 8" in ended.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["optimizer.lrr=1"], 'unknown key "optimizer.lrr"; did you mean "lr"?'),
        (["batch.micro=3"], "batch: global (8) must be divisible by micro (3)"),
        (["data.train=[]"], "data.train names no rows: give it files, such as data.train=rows.jsonl"),
        (
            ["parallel.model=2"],
            "data x shard x model x context x pipeline (1 x 1 x 2 x 1 x 1 = 2) must divide the ranks",
        ),
        (["--nproc", "2"], "--nproc (2) starts several ranks, and the trainer has one so far: leave --nproc out"),
        (["--ranks", "2"], "--ranks (2) says what to plan for, so it needs --dry-run"),
        (["model.config.num_attention_heads=5"], "hidden_size (64) must be divisible by num_attention_heads (5)"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(run, here, arguments, sentence):
    before = sorted(here.iterdir())
    ended = run("train", "run.yaml", *arguments)
    assert ended.code == 2 and sentence in ended.err
    assert sorted(here.iterdir()) == before


class Told:
    """A trainer that notes what it is handed, and ends as it is told."""

    code = 0
    given: dict = {}

    def __init__(self, config, *, report, base, **_):
        Told.given = {"config": config, "report": report, "base": base}

    def fit(self) -> Ended:
        return Ended(Told.code, 7, "seven steps were taken")


@pytest.mark.parametrize("code", [0, 3, 4])
def test_it_ends_as_the_run_ended(run, here, monkeypatch, code):
    monkeypatch.setattr(trainers, "Trainer", Told)
    monkeypatch.setattr(Told, "code", code)
    ended = run("train", "run.yaml", "--resume", "none", "steps=7")
    assert ended.code == code and "seven steps were taken" in ended.err
    assert Told.given["base"] == here and Told.given["config"].steps == 7
    assert Told.given["config"].checkpoint.resume == "none"


def test_mindformers_own_paths_are_relative_to_where_the_command_is_typed(run, here, monkeypatch):
    (here / "configs").mkdir()
    (here / "mindformers.yaml").rename(here / "configs" / "run.yaml")
    monkeypatch.setattr(trainers, "Trainer", Told)
    ended = run("train", "configs/run.yaml")
    assert ended.code == 0 and Told.given["base"] == here
    assert 'did you mean "callbacks' in ended.err and "fields have no effect here; --dry-run lists them" in ended.err


@pytest.mark.slow
def test_a_dry_run_of_epochs_counts_their_steps_and_tokens(run, here):
    """Packed rows of 64 tokens, in steps of 8; what cannot be read is said, and the plan printed all the same."""
    lengths = [3 + number % 29 for number in range(200)]
    (here / "rows.jsonl").write_text(
        "".join(json.dumps({"input_ids": [5 + place % 90 for place in range(each)]}) + "\n" for each in lengths)
    )
    asked = ("train", "run.yaml", "--dry-run", "epochs=3", f"model.processor={zoo.path('vl2-nano')}")
    before = sorted(here.iterdir())
    ended = run(*asked, "model.config.vocab_size=700")
    assert (ended.code, ended.err) == (0, "")
    said = dict(line.strip().split("  ", 1) for line in ended.out.splitlines() if line.strip().count("  "))
    assert said["tokens"].strip() == f"{3 * sum(lengths):,}"
    steps = int(said["steps"].strip())
    least = math.ceil(math.ceil(sum(lengths) / 64) / 8)
    assert 3 * least <= steps <= 3 * (least + 1)
    assert sorted(here.iterdir()) == before
    plain = run(*asked, "model.config.vocab_size=700", "data.pack=none")
    assert f"{3 * 200 // 8}" in plain.out and f"{3 * sum(lengths):,}" in plain.out
    (here / "rows.jsonl").unlink()
    ended = run(*asked)
    assert ended.code == 0 and "not counted: " in ended.out and "rows.jsonl" in ended.out
    assert "at most 512 a step" in ended.out
