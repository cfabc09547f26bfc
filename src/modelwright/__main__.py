"""``python -m modelwright``, and the command ``modelwright``: the command line."""

import signal
import sys
from types import FrameType

ENDING = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
"""What `kill`, `timeout` and a terminal that is closed send."""


def main() -> None:
    """Run it; signals end it without a traceback, also while it is still being imported."""
    for name in ENDING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored
            signal.signal(number, _end)
    try:
        from modelwright.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


def _end(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does, so that what is half written or temporary is removed; the same signal again ends at once."""
    signal.signal(number, signal.SIG_DFL)
    sys.exit(128 + number)


if __name__ == "__main__":  # a process that multiprocessing spawns imports this file too
    main()
