"""Lines from the user: at a terminal with editing, history between sessions, completion, and pastes in one piece.

Where stdin is no terminal, every line is read as it stands. Leaves out what a line means (``session.py``).
"""

import contextlib
import glob
import os
import re
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROMPT = "> "
HISTORY = 1000
"""Lines that are remembered."""
PASTED = 0.02
"""Seconds within which the lines of a paste follow each other where the terminal does not mark it."""


class LineReader:
    """Reads what the user asks.

    Args:
        commands: what may stand at the beginning of a line, completed by Tab.
        with_paths: those of them that a path follows, completed too.
    """

    def __init__(self, commands: Sequence[str], with_paths: Sequence[str]):
        self.at_terminal = sys.stdin.isatty()
        self._commands, self._with_paths = commands, with_paths
        self._readline = _readline() if self.at_terminal else None
        if self._readline is not None:
            _let_edit(self._readline, self._complete)

    def read(self) -> str:
        """The next line, or the lines that were pasted at once, without the last line's end.

        Raises:
            EOFError: there are no more.
            KeyboardInterrupt: the user gave the line up.
        """
        if not self.at_terminal:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line.removesuffix("\n")
        lines = [input(PROMPT)]
        while _more_is_there():
            try:
                lines.append(input())
            except EOFError:
                break
        return "\n".join(lines)

    def close(self) -> None:
        """Keep the history, where there is a place for it."""
        if self._readline is None:
            return
        path = history_file()
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._readline.set_history_length(HISTORY)
            self._readline.write_history_file(path)
            path.chmod(0o600)

    def _complete(self, line: str, state: int) -> str | None:
        """The candidate of number ``state`` for the whole line, as readline asks for them one by one."""
        found = self.candidates(line)
        return found[state] if state < len(found) else None

    def candidates(self, line: str) -> list[str]:
        """What the line may become: a command, or one with a path."""
        command, space, rest = line.partition(" ")
        if not space:
            known = [command for command in self._commands if command.startswith(line)]
            return [f"{command} " if command in self._with_paths else command for command in known]
        if command not in self._with_paths:
            return []
        typed = unescaped(rest.lstrip().lstrip("\"'"))
        start = os.path.expanduser(typed)
        paths = sorted(glob.glob(glob.escape(start) + "*"))
        shown = (typed + path[len(start) :] + ("/" if os.path.isdir(path) else "") for path in paths)
        return [f"{command} {escaped(path)}" for path in shown]


def history_file() -> Path:
    """Where the history lies between sessions: the user's folder for state."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "modelwright" / "chat_history"


def escaped(path: str) -> str:
    r"""A path as a shell takes it: a backslash before blanks, quotes and backslashes."""
    return re.sub(r"([\s\"'\\])", r"\\\1", path)


def unescaped(path: str) -> str:
    """The inverse of :func:`escaped`."""
    return re.sub(r"\\(.)", r"\1", path)


def _readline() -> Any:
    """Python's module for editing lines; None where Python was built without, or there is no home for it."""
    try:
        import readline
    except ImportError:
        return None
    return readline


def _let_edit(readline: Any, complete: Any) -> None:
    if "libedit" in (readline.__doc__ or ""):
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste on")  # the lines of a paste arrive as one
    readline.set_completer_delims("")  # the whole line is completed
    readline.set_completer(complete)
    with contextlib.suppress(OSError):
        readline.read_history_file(history_file())


def _more_is_there() -> bool:
    """Whether another line waits already, as in a paste that the terminal does not mark."""
    try:
        return bool(select.select([sys.stdin], [], [], PASTED)[0])
    except (OSError, ValueError):  # not on Windows' terminals
        return False
