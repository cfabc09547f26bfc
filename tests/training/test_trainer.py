"""A run from its config to its end: what it writes, how it goes on after any end, and how it fails."""

import os
import signal
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from modelwright.data.batches import HeldOut
from modelwright.data.examples import Place, Tokens
from modelwright.errors import ConfigError, RequestError
from modelwright.training.checkpoints import saved_in
from modelwright.training.report import RunReport
from modelwright.training.results import DONE, FAILED, STOPPED
from modelwright.training.silence import Silence
from modelwright.training.trainer import Trainer
from tests.data.listed import AsGiven, Listed, batches, section
from tests.fakes import MOE, NOAUX, tokens
from tests.training.learners import rows_of, run_config, step_batch

CONFIG = {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2"} | NOAUX


class Steps:
    """Batches that depend on the step alone."""

    def __init__(self, model, before=None):
        self.model, self.at, self.before = model, 0, before or (lambda at: None)

    def __next__(self):
        self.before(self.at)
        rows = rows_of(self.model, 4, seed=self.at)
        places = tuple(Place("rows.jsonl", 4 * self.at + row) for row in range(4))
        self.at += 1
        return replace(step_batch(rows, 2), places=places)

    def steps_in(self, epochs):
        return 3 * epochs

    def steps_left(self, epochs):
        return self.steps_in(epochs) - self.at

    def steps_until(self, epochs):
        return 3 * epochs - self.at % (3 * epochs)

    def close(self):
        pass

    def sources(self):
        return [{"name": "rows", "format": "tokens", "rows": 12, "unread": ["id"]}]

    def state(self):
        return {"at": self.at}

    def restore(self, state):
        self.at = state["at"]


class Told(Silence):
    """What a run said."""

    def __init__(self):
        self.results, self.notes, self.held_out = {}, [], {}

    def step(self, result, more):
        assert more["param_norm"]().dim() == 0 and more["batch"].micro
        self.results[result.step] = result

    def evaluated(self, step, found):
        self.held_out[step] = found

    def note(self, sentence):
        self.notes.append(sentence)


def trainer_of(folder, before=None, held_out=None, **parts):
    config = run_config(
        **{"model": {"config": CONFIG}, "output": str(folder), "steps": 6, "checkpoint": {"every": 2}} | parts
    )
    trainer = Trainer(config, batches=Steps(None, before), held_out=held_out, report=Told())
    trainer.batches.model = trainer.model
    return trainer


@pytest.mark.slow
def test_a_longer_run_goes_on_and_leaves_what_was_exported(tmp_path):
    trainer_of(tmp_path, steps=1, log={"jsonl": True}).fit()
    longer = trainer_of(tmp_path, steps=2)
    longer.report = RunReport(tmp_path, longer.config.log)
    assert longer.fit().step == 2
    assert (tmp_path / "export" / "config.json").is_file() and (tmp_path / "export-2" / "config.json").is_file()
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 1 and '"step": 2' in rows[0]


def losses(trainer):
    return {step: (result.loss, result.norm) for step, result in trainer.report.results.items()}


def test_a_run_to_its_end(tmp_path):
    trainer = trainer_of(tmp_path)
    ended = trainer.fit()
    assert (ended.code, ended.step, trainer.step) == (DONE, 6, 6)
    assert trainer.report.notes[0] == "rows: nothing reads id of its rows"
    assert [saved.step for saved in saved_in(tmp_path / "checkpoints")] == [2, 4, 6]
    assert (tmp_path / "export" / "config.json").is_file()
    read = type(trainer.model).from_pretrained(tmp_path / "export")
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, trainer.model.state_dict()[name]), name
    again = trainer_of(tmp_path)
    assert (again.fit().code, again.report.results) == (DONE, {})


def test_a_run_for_several_ranks_is_refused_on_one(tmp_path):
    with pytest.raises(ConfigError, match=r"must (divide|equal) the ranks"):
        trainer_of(tmp_path, parallel={"model": 2})


def test_epochs_are_steps_of_the_data(tmp_path):
    assert trainer_of(tmp_path, steps=None, epochs=2).steps == 6


@pytest.mark.parametrize("rows, first, steps", [(4, 4, 8), (2, 5, 13), (8, 4, 6)])
def test_epochs_end_where_they_end_though_steps_have_another_size(rows, first, steps, tmp_path):
    """After three steps of 4 of 15 rows 3 are left in the first epoch, and 15 are in the other."""
    places = Counter()

    class Rows(Told):
        def step(self, result, more):
            places.update(place.line for place in more["batch"].places)
            super().step(result, more)

    def run(size, **limits):
        parts = {"limits": limits, "batch": {"global": size}, "steps": None, "epochs": 2}
        parts |= {"model": {"config": CONFIG}, "output": str(tmp_path / "run"), "checkpoint": {"on_end": "none"}}
        config = run_config(schedule={"name": "linear"}, evaluate={"epochs": 1}, **parts)
        rows = batches(Listed([Tokens(np.arange(row, row + 3)) for row in range(15)]), pack="none", step=size)
        return Trainer(config, batches=rows, held_out={"none": []}, report=Rows())

    run(4, stop=3).fit()
    trainer = run(rows)
    assert trainer.fit().code == DONE
    assert list(trainer.report.held_out) == [first, steps]
    assert set(places.values()) == {2} and len(places) == 15
    assert trainer.steps == trainer.step == steps and set(trainer.report.results[steps].rates.values()) == {0.0}


@pytest.mark.parametrize("skip, measured", [(0, [2, 4, 5]), (1, [1, 3, 5]), (2, [2, 4, 5]), (3, [1, 3, 5])])
def test_epochs_after_which_rows_are_measured_begin_where_the_data_does(skip, measured, tmp_path):
    """Of two steps each."""
    parts = {"model": {"config": CONFIG}, "output": str(tmp_path), "checkpoint": {"on_end": "none"}, "steps": 5}
    config = run_config(evaluate={"epochs": 1}, **parts)
    rows = batches(Listed([Tokens(np.arange(row, row + 3)) for row in range(8)]), pack="none", step=4, skip=skip)
    trainer = Trainer(config, batches=rows, held_out={"none": []}, report=Told())
    assert trainer.fit().code == DONE
    assert list(trainer.report.held_out) == measured


def test_a_run_of_epochs_that_are_all_passed_over_is_refused(tmp_path):
    config = run_config(model={"config": CONFIG}, output=str(tmp_path), steps=None, epochs=1, data={"skip": 2})
    rows = batches(Listed([Tokens(np.arange(row, row + 3)) for row in range(8)]), pack="none", step=4, skip=2)
    with pytest.raises(ConfigError, match=r"data.skip \(2\) passes over all 2 steps of epochs \(1\)"):
        Trainer(config, batches=rows)


def test_a_run_of_epochs_without_a_full_step_is_refused(tmp_path):
    data, batch = {"drop_last": True}, {"global": 4}
    config = run_config(model={"config": CONFIG}, output=str(tmp_path), steps=None, epochs=2, data=data, batch=batch)
    rows = batches(Listed([Tokens(np.arange(3))] * 3), pack="none", step=4, drop_last=True)
    with pytest.raises(ConfigError, match=r"epochs \(2\) have no step: .* each needs batch.global \(4\) rows"):
        Trainer(config, batches=rows)


def test_epochs_without_a_full_step_have_no_end_to_measure_after(tmp_path):
    parts = {"model": {"config": CONFIG}, "output": str(tmp_path), "steps": 5, "batch": {"global": 4}}
    config = run_config(evaluate={"epochs": 1}, **parts)
    rows = batches(Listed([Tokens(np.arange(3))] * 3), pack="none", step=4, drop_last=True)
    ended = Trainer(config, batches=rows, held_out={"none": []}, report=Told()).fit()
    assert ended.code == FAILED
    assert "a step needs batch.global (4) rows, and an epoch has 3: with data.drop_last" in ended.reason


@pytest.mark.parametrize("how", ["signal", "error"])
def test_a_run_that_was_ended_goes_on(how, tmp_path):
    """Bit for bit, after the step of the signal, or after the last checkpoint."""
    whole = trainer_of(tmp_path / "whole")
    whole.fit()

    def end(at):
        if at == 3:
            if how == "error":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    first = trainer_of(tmp_path / "parts", end)
    if how == "error":
        with pytest.raises(KeyboardInterrupt):
            first.fit()
    else:
        ended = first.fit()
        assert (ended.code, ended.step) == (STOPPED, 4) and "SIGTERM" in ended.reason
    second = trainer_of(tmp_path / "parts")
    assert second.fit().code == DONE
    assert min(second.report.results) == (3 if how == "error" else 5)
    expected = losses(whole)
    found = losses(first) | losses(second)
    assert found == expected
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name


def poison(trainer, at):
    """Let a step's loss be no number."""

    def before(step):
        weight = trainer.learner.weights.masters["model.norm.weight"]
        if step == at:
            weight.data[0] = torch.nan
        elif step == at + 1:
            weight.data[0] = 1.0

    trainer.batches.before = before


def test_a_step_without_a_number_ends_the_run(tmp_path):
    """With the rows that were in it, and a checkpoint of the step before."""
    trainer = trainer_of(tmp_path)
    poison(trainer, 3)
    ended = trainer.fit()
    assert (ended.code, ended.step) == (FAILED, 3)
    assert "step 4 is not finite: loss nan" in ended.reason and "rows.jsonl:12, rows.jsonl:13" in ended.reason
    last = saved_in(tmp_path / "checkpoints")[-1]
    assert (last.step, last.facts()["data"]) == (3, {"at": 3})


def test_some_of_them_may_be_skipped(tmp_path):
    trainer = trainer_of(tmp_path, limits={"nonfinite": {"skip": 1}})
    poison(trainer, 3)
    assert trainer.fit().code == DONE
    assert [step for step, result in trainer.report.results.items() if result.skipped] == [4]


def test_held_out_rows_are_measured(tmp_path):
    trainer = trainer_of(tmp_path, evaluate={"every": 4})
    rows = rows_of(trainer.model, 4)
    trainer.held_out = {"held": [step_batch(rows[:3], 3).micro[0], step_batch(rows[3:], 1).micro[0]]}
    trainer.fit()
    assert set(trainer.report.held_out) == {4, 6}
    found = trainer.report.held_out[6]["held"]
    model = trainer.model.eval()
    with torch.no_grad():
        sums = [model.training_loss(**row) for row in rows]
    wanted = sum(float(each.total) for each in sums) / sum(each.counts.counted for each in sums)
    assert found["loss"] == pytest.approx(wanted, abs=1e-5)
    assert found["labels"] == sum(each.counts.counted for each in sums)


def test_two_runs_of_one_seed_begin_alike(tmp_path):
    first, second = trainer_of(tmp_path / "a"), trainer_of(tmp_path / "b", model={"config": CONFIG, "init": 4})
    torch.rand(3)
    third = trainer_of(tmp_path / "c")
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(third.model.state_dict()[name], tensor), name
    assert not torch.equal(second.model.lm_head.weight, first.model.lm_head.weight)


def test_a_limit_ends_a_run_before_its_schedule(tmp_path):
    trainer = trainer_of(tmp_path, limits={"stop": 2})
    assert (trainer.fit().step, trainer.steps) == (2, 6)


def test_what_cannot_be_built_is_refused(tmp_path):
    config = run_config(model={"config": {"model_type": "deepseek_v2"} | MOE}, output=str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs model\.processor"):
        Trainer(config)


def test_names_of_held_out_rows_that_nothing_reads_are_told_as_those_of_training(tmp_path):
    source, part = Listed([Tokens(np.arange(4))]), section()
    source.unread = lambda: ["score"]
    trainer = trainer_of(tmp_path, held_out={"own": HeldOut(source, AsGiven(part), part, 1, 0)}, steps=1)
    assert trainer.fit().code == DONE
    assert trainer.report.notes[:2] == ["rows: nothing reads id of its rows", "own: nothing reads score of its rows"]


def test_held_out_rows_that_cannot_be_read_cost_no_step(tmp_path):
    """At the end the run is saved and exported before they are looked at, in the midst of it what was learned is."""

    def broken():
        yield from ()
        raise RequestError("row 3 is too long")

    ended = trainer_of(tmp_path / "a", held_out={"own": broken}, steps=3).fit()
    assert ended.code == 4 and "row 3" in ended.reason
    assert saved_in(tmp_path / "a/checkpoints")[-1].step == 3
    assert (tmp_path / "a/export/config.json").exists()
    part = {"held_out": {"own": broken}, "steps": 5, "evaluate": {"every": 2}}
    assert trainer_of(tmp_path / "b", **part, checkpoint={"every": 5}).fit().code == 4
    assert [saved.step for saved in saved_in(tmp_path / "b/checkpoints")] == [2]


def test_measuring_is_life_and_answering_may_take_its_time(tmp_path):
    """Held-out rows whose passes take longer than `limits.patience` together are no hang."""

    def slow():
        for _ in range(4):
            time.sleep(0.4)
            yield {"input_ids": tokens(1, 5), "labels": tokens(1, 5)}

    def answer(model, processor):
        time.sleep(1.5)
        return {}

    trainer = trainer_of(tmp_path, held_out={"own": slow}, steps=1, limits={"patience": 1.0})
    trainer.answers = answer
    assert trainer.fit().code == 0 and not (tmp_path / "stacks.txt").exists()
