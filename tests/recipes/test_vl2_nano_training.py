"""The stages of vl2-nano's training: drawn batches, the eyes' stage, their practice beside conversations, resuming."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from modelwright import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor, zoo
from modelwright.configs.run import RunConfig
from modelwright.errors import CheckpointError
from modelwright.training.report import RunReport
from modelwright.training.report.step_flops import document_lengths
from modelwright.training.trainer import Trainer
from recipes.vl2_nano import train
from recipes.vl2_nano.drawn import DrawnSteps, drawn
from recipes.vl2_nano.eyes import PRACTICE, Eyes, PractisingVL2, for_practice, sights_for, total, train_eyes
from recipes.vl2_nano.model import write_out_attention
from recipes.vl2_nano.packing import Conversations

Model = TypeVar("Model", bound=DeepseekVLV2ForCausalLM)
MIX = (0.4, 0.3, 0.3)


@pytest.fixture(scope="module")
def processor() -> DeepseekVLV2Processor:
    return DeepseekVLV2Processor.from_pretrained(zoo.path("vl2-nano"))


def model_of(kind: type[Model]) -> Model:
    model = kind.from_pretrained(zoo.path("vl2-nano"), dtype=torch.float32)
    write_out_attention(model)
    return model


def run_of(folder: Path, steps: int = 2, *more: str) -> RunConfig:
    small = ("batch.micro=2", "batch.global=2", f"output={folder}", f"steps={steps}", "log.every=1")
    return RunConfig.read(train.RUN, [*small, *more])


def test_a_batch_is_drawn_by_its_number_whoever_draws_it():
    def make(rng):
        return {"input_ids": torch.from_numpy(rng.integers(9, size=(2, 5))), "labels": torch.full((2, 5), -100)}

    alone, ahead = drawn(make, 3), drawn(make, 3, workers=2)
    first = [next(alone) for _ in range(4)]
    assert all(torch.equal(next(ahead)["input_ids"], batch["input_ids"]) for batch in first)
    steps = DrawnSteps(make, 3, pad_id=0)
    taken = [next(steps) for _ in range(3)]
    again = DrawnSteps(make, 3, pad_id=0)
    again.restore({"seed": 3, "drawn": 2})
    assert torch.equal(next(again).micro[0]["input_ids"], taken[2].micro[0]["input_ids"])
    assert again.state() == steps.state() == {"seed": 3, "drawn": 3}
    with pytest.raises(CheckpointError, match="seed 3 and cannot go on with seed 4"):
        DrawnSteps(make, 4, pad_id=0).restore(steps.state())


def test_who_draws_ahead_leaves_a_terminals_signals_to_the_loop():
    """Stopped by Ctrl-C, or with its process group, the loop saves and ends; it was left without its batches."""

    def make(rng):
        return {"input_ids": torch.from_numpy(rng.integers(9, size=(2, 5))), "labels": torch.full((2, 5), -100)}

    before = set(multiprocessing.active_children())
    ahead, alone = drawn(make, 3, workers=1), drawn(make, 3)
    assert torch.equal(next(ahead)["input_ids"], next(alone)["input_ids"])
    [worker] = set(multiprocessing.active_children()) - before
    for each in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, each)
    for _ in range(9):  # more than it has drawn ahead
        assert torch.equal(next(ahead)["input_ids"], next(alone)["input_ids"])
    del ahead
    worker.join(10)
    assert worker.exitcode == 0


@pytest.mark.slow
def test_practice_adds_the_eyes_losses_to_the_models_own(processor):
    inputs: dict[str, Any] = Conversations(processor, 2, 3)(np.random.default_rng(0))
    sight = sights_for(processor, 1, MIX)(np.random.default_rng(1))
    plain, practising = model_of(DeepseekVLV2ForCausalLM), model_of(PractisingVL2)
    practising.eyes = Eyes(practising, processor)
    assert practising.state_dict().keys() == plain.state_dict().keys()  # heads are no part of the model
    own, with_eyes = plain.training_loss(**inputs), practising.training_loss(**inputs, **for_practice(sight))
    losses = practising.eyes.losses(practising, sight)
    torch.testing.assert_close(with_eyes.total, own.total)
    assert own.balance is not None and with_eyes.balance is not None
    torch.testing.assert_close(with_eyes.balance - own.balance, PRACTICE * total(losses))
    outputs = plain.train()(**inputs, use_cache=False)
    torch.testing.assert_close(own.total / own.counts.counted, outputs.loss - outputs.aux_loss)
    counts = practising.training_counts(**inputs, **for_practice(sight))
    assert counts == own.counts
    assert (
        list(document_lengths(inputs)) == [inputs["input_ids"].shape[1]] * 2
    )  # its mask says of no token it is padding


@pytest.mark.slow
def test_the_eyes_stage_steps_what_sees_and_nothing_else(processor, tmp_path):
    model = model_of(DeepseekVLV2ForCausalLM)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    eyes, config = Eyes(model, processor), run_of(tmp_path)
    train_eyes(model, eyes, sights_for(processor, 1, MIX), config, RunReport(tmp_path, config.log), workers=0)
    moved = {
        name.partition(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert moved == {"vision", "projector"}
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2 and all('"row_digits"' in row and '"right"' in row for row in rows)


@pytest.mark.slow
def test_a_stopped_stage_goes_on_bit_for_bit(processor, tmp_path):
    def fit(folder: Path, *more: str) -> dict[str, torch.Tensor]:
        model = model_of(DeepseekVLV2ForCausalLM)
        steps = DrawnSteps(Conversations(processor, 1, 2), 1, pad_id=2)
        config = run_of(folder, 3, "checkpoint.every=2", "batch.micro=1", "batch.global=1", *more)
        assert Trainer(config, model=model, processor=processor, batches=steps).fit().code == 0
        return model.state_dict()

    whole = fit(tmp_path / "whole")
    fit(tmp_path / "parts", "limits.stop=2")
    parts = fit(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_one_command_takes_both_stages_and_writes_an_official_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    keys = ["steps=1", "batch.micro=1", "batch.global=1"]
    arguments = ["--resume", str(zoo.path("vl2-nano")), "--sight-steps", "1", "--questions", "2", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", ["train", "--out", str(out), *arguments, "--set", *keys])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 0
    trained = DeepseekVLV2ForCausalLM.from_pretrained(out)
    assert trained.config.architectures == ["DeepseekVLV2ForCausalLM"]
    assert {"eyes.safetensors", "generation_config.json", "tokenizer.json"} <= {file.name for file in out.iterdir()}
    assert '"balance"' in (out / "run" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_the_mean_of_the_first_weights_and_the_last_may_be_written(tmp_path, monkeypatch):
    keys = ["steps=1", "batch.micro=1", "batch.global=1", "optimizer.lr=0.02", "schedule.warmup=0", "schedule.end=1"]
    first = zoo.path("vl2-nano")
    arguments = ["--resume", str(first), "--sight-steps", "0", "--questions", "2", "--workers", "0"]
    found = {}
    for name, more in (("last", []), ("mean", ["--mean"]), ("share", ["--mean", "0.7"])):
        monkeypatch.setattr(sys, "argv", ["train", "--out", str(tmp_path / name), *arguments, *more, "--set", *keys])
        with pytest.raises(SystemExit):
            train.main()
        found[name] = DeepseekVLV2ForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).state_dict()
    begun = DeepseekVLV2ForCausalLM.from_pretrained(first, dtype=torch.float32).state_dict()
    assert max(float((found["last"][name] - begun[name]).abs().max()) for name in begun) > 0.01
    for name, last in found["last"].items():  # each as it is stored, in bf16
        torch.testing.assert_close(found["mean"][name], (begun[name] + last) / 2, rtol=2**-7, atol=1e-3)
        torch.testing.assert_close(found["share"][name], 0.3 * begun[name] + 0.7 * last, rtol=2**-7, atol=1e-3)
