"""A look inside some steps: torch's profiler over a window of them, and a snapshot of what memory holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TRACE, TABLE, SNAPSHOT = "trace.json", "operations.txt", "memory.pickle"


class Profiling:
    """Profiles the steps of a window into ``folder/profile``: a trace for Perfetto or Chrome, a table, a snapshot.

    Args:
        window: which steps: ``first`` and ``last``, and whether ``memory`` is kept of an accelerator, as a snapshot for
            pytorch.org/memory_viz (`configs.run.ProfilePart`).
        note: takes the sentence that says where the files are, or why there are none.
    """

    def __init__(self, window: Any, folder: Path, device: str, note: Callable[[str], None]):
        self._window, self._folder, self._note = window, folder / "profile", note
        self._cuda = torch.device(device).type == "cuda"
        self._profiler: Any = None

    def begin(self, done: int) -> None:
        """Before the first step; `done` steps were done before."""
        if done + 1 == self._window.first:
            self._start()

    def after(self, step: int) -> None:
        """After a step: starts and ends the window."""
        if self._profiler is not None and step >= self._window.last:
            self.close()
        elif self._profiler is None and step + 1 == self._window.first:
            self._start()

    def close(self) -> None:
        """Write what was seen, if the window is open."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        try:
            profiler.__exit__(None, None, None)
            self._folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self._folder / TRACE))
            order = "self_cuda_time_total" if self._cuda else "self_cpu_time_total"
            table = profiler.key_averages().table(sort_by=order, row_limit=40)
            (self._folder / TABLE).write_text(table, encoding="utf-8")
            if self._window.memory and self._cuda:
                torch.cuda.memory._dump_snapshot(str(self._folder / SNAPSHOT))
                torch.cuda.memory._record_memory_history(enabled=None)
            self._note(f"profile of steps {self._window.first} to {self._window.last} in {self._folder}")
        except Exception as error:  # looking at a run must not end it
            self._note(f"no profile was written: {type(error).__name__}: {error}")

    def _start(self) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self._cuda:
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
            if self._window.memory:
                torch.cuda.memory._record_memory_history(max_entries=100_000)
        self._profiler = torch.profiler.profile(activities=kinds, profile_memory=self._window.memory)
        self._profiler.__enter__()
