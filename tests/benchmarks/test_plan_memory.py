"""The memory benchmark: its stored predictions are today's, its stored errors small, and one case measured anew."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.plan_memory import CASES, config_of
from modelwright.planner.plan import plan

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "plan_memory.py"
STORED = json.loads((ROOT / "benchmarks" / "results" / "plan_memory.json").read_text("utf-8"))["results"]
ACCEPTED = 0.1
"""Largest accepted difference, as a share of what was measured."""


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: stored["case"])
def test_the_stored_predictions_are_the_planners(stored):
    settings = CASES[stored["case"]]
    attention = "eager" if settings["eager"] else "fused"
    planned = plan(
        config_of(stored["case"], settings["config"]),
        context=settings["context"],
        dtype=settings["dtype"],
        image=settings.get("image"),
        attention=attention,
    )
    assert planned.counts.parameters.total == stored["parameters"]
    assert round(planned.memory.total / 2**20, 1) == stored["predicted_mib"]


def test_every_case_was_measured_close_to_its_prediction():
    assert [stored["case"] for stored in STORED] == list(CASES)
    for stored in STORED:
        assert abs(stored["predicted_mib"] / stored["measured_mib"] - 1) < ACCEPTED


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident sets are read from /proc")
@pytest.mark.parametrize("case", list(CASES))
def test_a_measured_peak_is_within_a_tenth(case):
    done = subprocess.run([sys.executable, SCRIPT, "--case", case], capture_output=True, text=True, check=True)
    assert abs(json.loads(done.stdout.splitlines()[-1])["error"]) < ACCEPTED
