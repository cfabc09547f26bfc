"""A run's report: its line, its rows, its plot, what writers get, and that it goes on where a run is continued."""

import json
import math
import re
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from modelwright.errors import ConfigError
from modelwright.families.llama.config import LlamaConfig
from modelwright.planner.counting import count
from modelwright.planner.training_flops import training_flops
from modelwright.training.report import RunFacts, RunReport, peaks, writers
from modelwright.training.report.line import clock, step_line
from modelwright.training.report.loss_plot import Curves
from modelwright.training.report.metrics_file import rows
from modelwright.training.report.peaks import peak_flops, peak_of
from modelwright.training.results import Ended, StepResult
from tests.llamas import HUGGING_FACE


@dataclass(frozen=True)
class Log:
    every: int = 2
    jsonl: bool = True
    tensorboard: bool = False
    wandb: str | None = None
    trackio: str | None = None
    profile: object = None


def result(step, **changes):
    values = {
        "loss": 3.0 / step + 0.01,
        "lm": 3.0 / step,
        "balance": 0.01,
        "counted": 14,
        "tokens": 16,
        "norm": 0.5,
        "norms": {"attention": 0.3, "head": 0.4},
        "rates": {"attention": 1e-3, "head": 1e-4},
        "seconds": 0.2,
        "data_seconds": 0.05,
    }
    return StepResult(step, **values | changes)


def run(folder, steps, done=0, log=None, whole=10, **facts):
    lines = []
    report = RunReport(folder, log or Log(), lines.append)
    report.begin(RunFacts(steps=whole, done=done, command=("modelwright", "train", "run.yaml"), **facts))
    for step in steps:
        report.step(result(step))
    report.end(Ended(0, steps[-1], "done"))
    return lines


def test_the_line_is_that_of_the_specification():
    row = {
        "step": 200,
        "loss": 2.1034,
        "lm": 2.0990,
        "balance": 0.0044,
        "rates": {"a": 1.98e-5, "b": 1.98e-5},
        "norm": 0.84,
        "tokens_per_second": 12410.2,
        "mfu": 0.41,
        "memory": {"peak": int(18.2 * 2**30), "total": 80 * 2**30},
    }
    assert step_line(row, 1000, 12 * 60 + 41) == (
        "step 200/1000  loss 2.1034 (lm 2.0990 + balance 0.0044)  lr 1.98e-05  norm 0.84  12,410 tok/s  mfu 41%  "
        "18.2/80 GiB  eta 12:41"
    )
    short = step_line({"step": 1, "loss": math.nan, "rates": {"a": 1e-4, "b": 2e-4}}, 5, None)
    assert short == "step 1/5  loss nan  lr 1.00e-04 to 2.00e-04"


def test_time_that_is_left_is_read_at_a_glance():
    assert [clock(s) for s in (0, 59.6, 3600, 90061)] == ["0:00", "1:00", "1:00:00", "1d 01:01"]


def test_the_first_the_last_and_every_nth_step_are_logged_once(tmp_path):
    lines = run(tmp_path, range(1, 6), whole=5)
    logged = list(rows(tmp_path / "metrics.jsonl"))
    assert [row["step"] for row in logged] == [1, 2, 4, 5]
    assert [line.split()[1] for line in lines] == ["1/5", "2/5", "4/5", "5/5"]
    row = logged[2]  # of two steps of 16 tokens in 0.25 s each
    assert row["tokens_per_second"] == pytest.approx(64) and row["data_wait"] == pytest.approx(0.2)
    assert row["step_seconds"] == {"p50": 0.25, "p95": 0.25}
    assert row["loss"] == pytest.approx(0.76) and row["lm"] == 0.75 and row["balance"] == 0.01
    assert row["counted"] == 14 and row["norms"] == {"attention": 0.3, "head": 0.4}
    assert row["rates"] == {"attention": 1e-3, "head": 1e-4} and row["skipped"] == 0
    assert row["memory"]["peak"] >= row["memory"]["now"] > 0


def test_a_continued_run_has_no_point_twice(tmp_path):
    run(tmp_path, range(1, 8))
    run(tmp_path, range(5, 11), done=4)
    steps = [row["step"] for row in rows(tmp_path / "metrics.jsonl")]
    assert steps == [1, 2, 4, 5, 6, 8, 10]
    assert list(Curves.of(rows(tmp_path / "metrics.jsonl")).training) == steps
    said = json.loads((tmp_path / "run.json").read_text())
    assert said["continued"][0]["done"] == 4 and said["command"] == ["modelwright", "train", "run.yaml"]
    svg = (tmp_path / "loss.svg").read_text()
    points = re.findall(r'<polyline points="([^"]*)"[^>]*class="each"', svg)
    assert [len(line.split()) for line in points] == [7]


def test_a_run_that_is_not_a_number_is_drawn_and_written_as_json(tmp_path):
    report = RunReport(tmp_path, Log(every=1))
    report.begin(RunFacts(steps=3))
    for step, loss in ((1, 2.0), (2, math.nan), (3, math.inf)):
        report.step(result(step, loss=loss, lm=loss, norm=loss))
    report.end(Ended(4, 3, "loss"))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    second = [json.loads(line) for line in text.splitlines()][1]
    assert second["loss"] is None and second["not_finite"]["loss"] == "nan"
    assert "nan" not in (tmp_path / "loss.svg").read_text()


def test_flops_are_those_of_the_planner_and_mfu_is_their_share_of_the_peak(tmp_path, monkeypatch):
    monkeypatch.setattr("modelwright.training.report.run_report.peak_flops", lambda *_: (1e6, "table"))
    counts = count(LlamaConfig(**HUGGING_FACE))
    ids = torch.zeros(2, 8, dtype=torch.int64)
    batch = SimpleNamespace(micro=({"input_ids": ids, "labels": ids},), counted=14, broken=3)
    report = RunReport(tmp_path, Log(every=1))
    report.begin(RunFacts(steps=1, counts=counts))
    report.step(result(1), {"batch": batch, "param_norm": lambda: torch.tensor(2.5), "passes": 0})
    report.end(Ended(0, 1, "done"))
    [row] = rows(tmp_path / "metrics.jsonl")
    assert row["flops_per_second"] == pytest.approx(2 * training_flops(counts, 8, learned=7).total / 0.25)
    assert row["mfu"] == pytest.approx(row["flops_per_second"] / 1e6)
    assert (row["broken"], row["param_norm"], row["passes"]) == (3, 2.5, 0)


def test_experts_are_told_layer_by_layer(tmp_path):
    report = RunReport(tmp_path, Log(every=1))
    report.begin(RunFacts(steps=1))
    report.step(result(1, loads=torch.tensor([[4, 4, 4, 4], [16, 0, 0, 0]])))
    report.end(Ended(0, 1, "done"))
    [row] = rows(tmp_path / "metrics.jsonl")
    assert row["experts"] == {"min": [0.25, 0], "mean": [0.25, 0.25], "max": [0.25, 1], "entropy": [1, 0]}


def test_what_is_not_logged_costs_no_reading(tmp_path):
    asked = []
    report = RunReport(tmp_path, Log(every=5))
    report.begin(RunFacts(steps=10))
    for step in range(1, 11):
        report.step(result(step), {"param_norm": lambda step=step: asked.append(step) or 1.0})
    report.end(Ended(0, 10, "done"))
    assert asked == [1, 5, 10]


def test_skipped_steps_are_counted_and_said(tmp_path):
    lines = []
    report = RunReport(tmp_path, Log(every=3), lines.append)
    report.begin(RunFacts(steps=3))
    for step in (1, 2, 3):
        report.step(result(step, skipped="norm inf" if step == 2 else None))
    report.end(Ended(0, 3, "done"))
    assert "step 2 was skipped: norm inf" in lines
    assert [row["skipped"] for row in rows(tmp_path / "metrics.jsonl")] == [0, 1]


def test_held_out_sets_have_rows_and_lines_and_curves(tmp_path):
    lines = []
    report = RunReport(tmp_path, Log(every=1), lines.append)
    report.begin(RunFacts(steps=2))
    report.step(result(1))
    report.evaluated(1, {"held_out": {"loss": 2.0, "perplexity": math.exp(2.0), "labels": 40}})
    report.end(Ended(0, 1, "done"))
    assert "step 1/2  held_out: loss 2.0000  perplexity 7.3891  labels 40" in lines
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 1]
    assert "held_out 2.0000" in (tmp_path / "loss.svg").read_text()


class Breaking:
    def __init__(self, at):
        self.at, self.seen = at, []

    def log(self, step, values):
        if step == self.at:
            raise OSError("disk full")
        self.seen.append((step, values))

    def close(self):
        self.seen.append("closed")


def test_a_writer_that_fails_is_left_out_and_the_others_go_on():
    said = []
    bad, good = Breaking(at=2), Breaking(at=None)
    both = writers.Writers({"bad": bad, "good": good}, said.append)
    for step in (1, 2, 3):
        both.log(step, {"loss": 1.0})
    both.close()
    assert [step for step, _ in bad.seen] == [1] and good.seen[-1] == "closed" and len(good.seen) == 4
    assert said == ["bad is left out from now on, since it failed: OSError: disk full"]


def test_a_package_that_is_asked_for_and_missing_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"log\.wandb \(mine\) needs the package wandb, which is not installed: pip"):
        RunReport(tmp_path / "run", replace(Log(), wandb="mine"))
    assert not (tmp_path / "run").exists()


def test_writers_get_finite_numbers_under_flat_names(tmp_path, monkeypatch):
    kept = Breaking(at=None)
    monkeypatch.setattr(writers, "find_spec", lambda name: object())
    monkeypatch.setattr(writers, "TensorBoardWriter", lambda folder, done: kept)
    report = RunReport(tmp_path, replace(Log(every=1), tensorboard=True))
    report.begin(RunFacts(steps=1))
    report.step(result(1, norm=math.inf))
    report.end(Ended(0, 1, "done"))
    [(step, values), closed] = kept.seen
    assert step == 1 and closed == "closed"
    assert values["norms/attention"] == 0.3 and values["step_seconds/p50"] == 0.25
    assert "norm" not in values and "time" not in values and all(math.isfinite(v) for v in values.values())


@pytest.mark.parametrize(
    ("measured", "peak"), [({"bfloat16": 1e10, "float32": 9e10}, 9e10), ({"bfloat16": 3e11}, 3e11)]
)
def test_a_processor_without_products_of_bf16_is_as_fast_as_in_fp32(monkeypatch, measured, peak):
    monkeypatch.setattr(peaks, "measured_flops", lambda _, kind: measured.get(str(kind).removeprefix("torch."), 8e10))
    assert peak_flops("cpu", "bfloat16") == (peak, "measured")


def test_peaks_of_devices_are_told_by_name():
    assert peak_of("NVIDIA H200", torch.bfloat16) == 989e12
    assert peak_of("NVIDIA H100 PCIe", torch.bfloat16) == 756e12
    assert peak_of("NVIDIA A100-SXM4-80GB", torch.float32) == 19.5e12
    assert peak_of("Something else", torch.bfloat16) is None
