"""The window that the profiler sees: what it writes, and that it ends no run."""

import json
from types import SimpleNamespace

import torch

from modelwright.training.report.profiling import TABLE, TRACE, Profiling


def test_the_steps_of_the_window_are_traced(tmp_path):
    said = []
    profiling = Profiling(SimpleNamespace(first=2, last=3, memory=True), tmp_path, "cpu", said.append)
    profiling.begin(0)
    for step in range(1, 5):
        torch.ones(4, 4) @ torch.ones(4, step)
        profiling.after(step)
    events = json.loads((tmp_path / "profile" / TRACE).read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in events) == 2
    assert "aten::mm" in (tmp_path / "profile" / TABLE).read_text()
    assert said == [f"profile of steps 2 to 3 in {tmp_path / 'profile'}"]


def test_a_run_that_ends_within_the_window_writes_what_was_seen(tmp_path):
    profiling = Profiling(SimpleNamespace(first=1, last=9, memory=False), tmp_path, "cpu", lambda _: None)
    profiling.begin(0)
    profiling.after(1)
    profiling.close()
    assert (tmp_path / "profile" / TRACE).exists()


def test_a_folder_that_takes_nothing_is_said(tmp_path):
    (tmp_path / "profile").write_text("a file")
    said = []
    profiling = Profiling(SimpleNamespace(first=1, last=1, memory=False), tmp_path, "cpu", said.append)
    profiling.begin(0)
    profiling.after(1)
    assert len(said) == 1 and said[0].startswith("no profile was written: FileExistsError")
