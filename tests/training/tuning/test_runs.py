"""Whole runs with LoRA: what moves, what is exported, and how a run goes on from a checkpoint and from an adapter."""

import copy
import json

import peft
import pytest
import torch

from modelwright import DeepseekV2ForCausalLM
from modelwright.training.results import DONE
from modelwright.training.trainer import Trainer
from modelwright.training.tuning import load_adapter, lora_of
from tests.fakes import NOAUX, tiny_v2, tiny_vl2
from tests.training.learners import run_config
from tests.training.test_trainer import Steps, Told, losses
from tests.training.tuning.tunes import inputs, logits, near

LORA = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_v2(base=NOAUX).save_pretrained(folder)
    return folder


def trainer_of(base, output, tune=LORA, steps=4, model=None, limits=None, **parts):
    optimizer = {"lr": 1e-2}
    config = run_config(
        **{"model": {"path": str(base)} | parts, "output": str(output), "steps": steps, "tune": tune},
        optimizer=optimizer,
        limits=limits or {},
        checkpoint={"every": 2},
    )
    model = DeepseekV2ForCausalLM.from_pretrained(base) if model is None else model
    return Trainer(config, batches=Steps(tiny_v2(base=NOAUX)), model=model, report=Told())  # rows of text, for all


@pytest.mark.slow
def test_pairs_alone_move_and_are_exported(base, tmp_path):
    trainer = trainer_of(base, tmp_path)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert trainer.fit().code == DONE
    for name, tensor in trainer.model.state_dict().items():
        moved = ".lora." in name
        assert torch.equal(tensor, before[name]) != moved, name  # a frozen router's bias stays too
    plain = type(trainer.model).from_pretrained(base)
    given = inputs("v2", 2, 9)
    wanted = logits(trainer.model, given)
    assert not near(logits(plain, given), wanted, 1e-3)
    said = json.loads((tmp_path / "export" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(base)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "export")
    load_adapter(plain, tmp_path / "export")
    assert near(logits(plain, given), wanted, 1e-6) and near(logits(theirs, given), wanted, 2e-6)


@pytest.mark.slow
def test_goes_on_bit_for_bit_with_its_dropout(base, tmp_path):
    whole = trainer_of(base, tmp_path / "whole")
    whole.fit()
    first = trainer_of(base, tmp_path / "parts", limits={"stop": 2})
    first.fit()
    second = trainer_of(base, tmp_path / "parts")
    second.fit()
    assert losses(first) | losses(second) == losses(whole)
    found = lora_of(second.model)
    assert all(torch.equal(pair.A, found[name].A) for name, pair in lora_of(whole.model).items())


@pytest.mark.slow
def test_an_adapter_is_continued_by_a_run(base, tmp_path):
    first = trainer_of(base, tmp_path / "first")
    first.fit()
    second = trainer_of(base, tmp_path / "second", tune=None, adapter=str(tmp_path / "first" / "export"))
    for name, pair in lora_of(first.model).items():
        assert torch.equal(pair.A, lora_of(second.model)[name].A)
    assert second.fit().code == DONE
    assert (tmp_path / "second" / "export" / "adapter_model.safetensors").is_file()


def test_pictures_that_never_come_are_told_of(tmp_path):
    model = tiny_vl2()
    trainer = trainer_of("unused", tmp_path, {"train": ["vision", "head"]}, steps=1, model=model)
    trainer.fit()
    assert any("no row of the first step has a picture" in note for note in trainer.report.notes)
    trainer = trainer_of("unused", tmp_path / "other", {}, steps=1, model=tiny_vl2())
    assert not trainer.tuned.trains("vision")
