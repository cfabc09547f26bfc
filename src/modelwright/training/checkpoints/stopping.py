"""What signals and the clock ask of a run: a checkpoint, or its end, after the step that is being taken."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

ENDING = (signal.SIGTERM, signal.SIGINT)
_SAVING = getattr(signal, "SIGUSR1", None)  # Windows has none


@dataclass(frozen=True)
class Asked:
    """What should happen after a step.

    Attributes:
        save: write a checkpoint.
        stop: end the run, after a checkpoint; the name of the signal that asked for it, or None.
    """

    save: bool = False
    stop: str | None = None


class Stopping:
    """While entered, SIGTERM and SIGINT end a run after its step, and SIGUSR1 or the clock ask for a checkpoint.

    A second SIGTERM or SIGINT ends the process at once, as if nobody had listened. The handlers of before come back in
    the end. Outside the main thread, which no signal reaches, the clock alone is asked.

    Args:
        minutes: ask for a checkpoint whenever so many more of the run have passed, however many others there were: a
            limit on its time can be met by one just before it.
        clock: seconds, in tests another than the system's.
    """

    def __init__(self, minutes: float | None = None, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._interval = None if minutes is None else 60 * minutes
        self._begun, self._marks = clock(), 0
        self._signal: str | None = None
        self._save = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                self._before[number] = signal.signal(number, self._note_end)
            if _SAVING is not None:
                self._before[_SAVING] = signal.signal(_SAVING, self._note_save)
        self._begun, self._marks = self._clock(), 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set from Python
        self._before.clear()

    def after_step(self) -> Asked:
        """What is asked for now."""
        return Asked(self._save or self._passed() > self._marks or self._signal is not None, self._signal)

    def saved(self) -> None:
        """A checkpoint has been taken, whoever asked for it."""
        self._save, self._marks = False, self._passed()

    def _passed(self) -> int:
        """How many times `minutes` have passed."""
        return 0 if self._interval is None else int((self._clock() - self._begun) / self._interval)

    def _note_end(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signal = signal.Signals(number).name

    def _note_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True
