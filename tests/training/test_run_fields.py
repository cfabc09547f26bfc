"""What a trainer makes of fields that MindFormers' runs have: first weights, epochs, times, ends."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from modelwright import zoo
from modelwright.checkpoints.convert import convert
from modelwright.configs.run import ModelPart, RunConfig
from modelwright.configs.run.mindformers import translate
from modelwright.training.build import build_model, found_at
from modelwright.training.checkpoints import saved_in
from modelwright.training.trainer import Trainer
from modelwright.training.tuning import parts_of
from tests.llamas import HUGGING_FACE, tiny_llama
from tests.training.learners import learner_of
from tests.training.test_trainer import Steps, Told, losses, trainer_of

MODEL = {"type": "LlamaConfig", "hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 64, "seq_length": 24}
TYPES = {"param_init_type": "float32", "compute_dtype": "float32"}


def mindformers(**sections):
    return {"model": {"model_config": MODEL | TYPES}, "output_dir": "unused"} | sections


def model_part(**sections) -> ModelPart:
    return RunConfig.of(translate(mindformers(**sections)).values).model


def test_a_mindformers_run_builds_its_model(tmp_path):
    model, processor = build_model(model_part(), 0, tmp_path)
    assert processor is None and model.config.dialect == "mindformers"
    assert model.config.hidden_size == 32 and model.dtype == torch.float32


def test_a_mindformers_run_begins_with_the_weights_that_it_names(tmp_path):
    model, _ = build_model(model_part(), 5, tmp_path)
    model.save_pretrained(tmp_path)
    read, _ = build_model(model_part(load_checkpoint=str(tmp_path)), 0, tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name


def test_a_mindformers_run_learns(tmp_path):
    """Its own schedule counts from step 0, so that the first step of a warmed up run moves nothing."""
    run = mindformers(
        output_dir=str(tmp_path),
        runner_config={"epochs": 2, "batch_size": 2, "gradient_accumulation_steps": 2},
        optimizer={"type": "AdamW"},
        lr_schedule={"type": "CosineWithWarmUpLR", "learning_rate": 0.01, "warmup_steps": 2},
        recompute_config={"select_recompute": True},
        callbacks=[{"type": "CheckpointMonitor", "save_checkpoint_steps": 4, "keep_checkpoint_max": 1}],
    )
    config = RunConfig.of(translate(run).values)
    trainer = Trainer(config, batches=Steps(None), report=Told())
    trainer.batches.model = trainer.model
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert trainer.steps == 6
    trainer.step_on(next(trainer.batches))
    assert all(torch.equal(trainer.model.state_dict()[name], tensor) for name, tensor in before.items())
    assert trainer.fit().code == 0
    rates = [result.rates for result in trainer.report.results.values()]
    assert max(rates[0].values()) == pytest.approx(0.005)
    assert [saved.step for saved in saved_in(tmp_path / "checkpoints")] == [6]


def test_a_model_of_the_zoo_is_found_by_its_name_unless_a_folder_has_it(tmp_path):
    assert found_at("vl2-nano", tmp_path) == str(zoo.path("vl2-nano"))
    assert found_at("somebody/else", tmp_path) == "somebody/else"
    (tmp_path / "vl2-nano").mkdir()
    assert found_at("vl2-nano", tmp_path) == str(tmp_path / "vl2-nano")


@pytest.mark.slow
def test_a_run_of_a_model_of_the_zoo_is_exported(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a red circle"}\n' * 4)
    report, values = Told(), {"model": {"path": "vl2-nano"}, "tune": {"train": ["norms"]}, "steps": 1}
    values |= {"optimizer": {"lr": 1e-2}, "schedule": {"name": "constant"}}
    data = {"train": ["rows.jsonl"], "workers": 0, "seq_length": 64}
    run = RunConfig.of(values | {"data": data, "output": str(tmp_path)})
    model, _ = build_model(run.model, 0, tmp_path)
    begun = []
    report.begin = begun.append
    assert Trainer(run, report=report, base=tmp_path).fit().code == 0
    assert [dict(each) for each in begun[0].data] == [{"name": "rows.jsonl", "format": "text", "rows": 4}]
    assert set(begun[0].layout.values()) == {1}
    exported = type(model).from_pretrained(tmp_path / "export")
    assert list(report.notes)[-1] == f"the model is in {tmp_path / 'export'}"
    own, first = exported.state_dict(), model.state_dict()
    assert {name for name in own if not torch.equal(own[name], first[name])} == set(parts_of(model)["norms"])


def test_a_run_may_end_before_its_schedule(tmp_path):
    ended = trainer_of(tmp_path, limits={"stop": 3}).fit()
    assert (ended.code, ended.step) == (0, 3)


@pytest.mark.slow
def test_held_out_rows_are_measured_after_so_many_epochs(tmp_path):
    trainer = trainer_of(tmp_path, steps=8, evaluate={"epochs": 1}, held_out={"none": []})
    trainer.fit()
    assert list(trainer.report.held_out) == [3, 6, 8]


def test_a_checkpoint_is_written_after_so_many_seconds(tmp_path):
    trainer = trainer_of(tmp_path, checkpoint={"every": None, "seconds": 1e-9, "keep": 9}, steps=3)
    trainer.fit()
    assert [saved.step for saved in saved_in(tmp_path / "checkpoints")] == [1, 2, 3]


@pytest.mark.slow
def test_a_run_goes_on_from_the_output_of_another(tmp_path):
    trainer_of(tmp_path / "one").fit()
    trainer = trainer_of(tmp_path / "two", checkpoint={"resume": str(tmp_path / "one")}, steps=7)
    trainer.fit()
    assert list(losses(trainer)) == [7]


@pytest.mark.parametrize("joined", [False, True])
def test_a_mindformers_run_trains_from_weights_in_mindformers_own_names(joined, tmp_path):
    """Every step is that of the Hugging Face model which they were converted from."""
    plain = tiny_llama(base=HUGGING_FACE)
    plain.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "mf", to="mindformers", qkv_concat=joined)
    names = load_file(next((tmp_path / "mf").glob("*.safetensors")))
    assert "model.layers.0.attention.wo.weight" in names
    assert ("model.layers.0.attention.w_qkv.weight" in names) == joined
    [file] = (tmp_path / "mf").glob("*.yaml")
    run = yaml.safe_load(file.read_text())
    file.unlink()  # the run itself says of what model the weights are
    run |= {
        "output_dir": str(tmp_path / "run"),
        "load_checkpoint": str(tmp_path / "mf"),
        "load_ckpt_format": "safetensors",
        "runner_config": {"epochs": 1, "batch_size": 2, "gradient_accumulation_steps": 2},
        "optimizer": {"type": "AdamW", "weight_decay": 0.0, "eps": 1e-8, "betas": [0.9, 0.95]},
        "lr_schedule": {"type": "ConstantWarmUpLR", "learning_rate": 0.01, "warmup_steps": 0},
    }
    trainer = Trainer(RunConfig.of(translate(run).values), batches=Steps(None), report=Told())
    trainer.batches.model = trainer.model
    assert trainer.model.config.dialect == "mindformers" and trainer.fit().code == 0
    learner = learner_of(plain, optimizer={"lr": 0.01, "weight_decay": 0.0}, schedule={"name": "constant"})
    rows = Steps(plain)
    wanted = [learner.step_on(step, next(rows)).loss for step in (1, 2, 3)]
    found = [result.loss for result in trainer.report.results.values()]
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)
    assert max(wanted) - min(wanted) > 0.05
