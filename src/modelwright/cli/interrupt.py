"""Ctrl-C between two steps of an engine instead of inside one; imports no model library."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

INTERRUPTED = 130
"""The exit status of a command ended by Ctrl-C, as shells know it."""


class Interrupt:
    """While entered, the first Ctrl-C is noted in `asked`, so that a step comes to its end; a second one is raised.

    Outside the main thread, which no signal reaches, it changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> Self:
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before or signal.SIG_DFL)  # None: not set from Python

    def _note(self, _: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
