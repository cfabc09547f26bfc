"""The command line run in this process, and the tiny checkpoints it is run on."""

import sys
import warnings
from dataclasses import dataclass
from typing import TextIO

import pytest

from modelwright.cli.main import main
from tests.checkpoints.tiny import write_v2, write_vl2


@pytest.fixture(scope="session")
def vl2(tmp_path_factory):
    return write_vl2(tmp_path_factory.mktemp("vl2"))


@pytest.fixture(scope="session")
def v2(tmp_path_factory):
    return write_v2(tmp_path_factory.mktemp("v2"))


@dataclass(frozen=True)
class Run:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _width_of_the_stream(monkeypatch):
    """No width but the stream's own, which pytest's workers set."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def run(monkeypatch, capsys):
    """``run("chat", ..., stdin="lines")``, or a stream for stdin."""

    def command(*args, stdin: str | TextIO = "") -> Run:
        monkeypatch.setattr(sys, "argv", ["modelwright", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", _Lines(stdin) if isinstance(stdin, str) else stdin)
        capsys.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        return Run(ended.value.code or 0, written.out, written.err)

    return command


class _Lines:
    """A stdin that is no terminal."""

    def __init__(self, text: str):
        self._lines = iter(text.splitlines(keepends=True))

    def readline(self, *_) -> str:
        return next(self._lines, "")

    def isatty(self) -> bool:
        return False
