"""What ends a run that hangs: after so long without a step the stacks of all threads are written, and it ends."""

import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelwright.training.results import FAILED

NAME = "stacks.txt"
_STOPPED = 5.0
"""Seconds by which a thread that only waits is never late while its process runs."""


class Watchdog:
    """A thread that ends the process with exit code 4 unless `alive` is called often enough.

    Python's signal handlers cannot run while a thread hangs in a library, and an exception would wait for it, so that
    the process ends at once: checkpoints are whole at any moment.

    Args:
        patience: seconds without a sign of life after which the process ends.
        folder: where ``stacks.txt`` goes.
        note: takes the sentence that says so.
        end: what ends the process, with the exit code.
    """

    def __init__(
        self,
        patience: float,
        folder: Path,
        note: Callable[[str], None],
        end: Callable[[int], Any] = os._exit,
    ):
        self._patience, self._folder, self._note, self._end = patience, folder, note, end
        self._last, self._doing = time.monotonic(), "step 1"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._last = time.monotonic()
        self._thread.start()

    def alive(self, doing: str) -> None:
        """A sign of life; ``doing`` is what comes next."""
        self._doing = doing
        self._last = time.monotonic()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Nothing is watched meanwhile."""
        self._last = math.inf
        try:
            yield
        finally:
            self._last = time.monotonic()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stopped.wait(seconds := self._until_next_look(looked)):
            before, looked = looked, time.monotonic()
            late = looked - before - seconds
            if late > min(_STOPPED, self._patience / 2):  # by Ctrl-Z or a debugger, the process as a whole stood still
                self._last = max(self._last, min(self._last + late, looked))  # it may have lived before this thread
            if looked - self._last >= self._patience:
                self._report()
                return

    def _until_next_look(self, now: float) -> float:
        """Seconds: few enough to tell a process that was stopped from one that waits."""
        return min(max(self._last + self._patience - now, 0.01), self._patience / 4, 1.0)

    def _report(self) -> None:
        path = self._folder / NAME
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {self._doing} for {self._patience:g} s\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            where = str(path)
        except OSError:
            where = "standard error"
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        try:
            self._note(f"{self._doing} was not done within limits.patience ({self._patience:g} s); stacks in {where}")
        finally:
            self._end(FAILED)
