"""Lines typed, completed and pasted at a terminal, the history between sessions, and what reaches a terminal."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelwright.cli.console import harmless
from modelwright.cli.line_reader import LineReader, escaped, history_file, unescaped

READ = """
from modelwright.cli.line_reader import LineReader
reader = LineReader(["/image", "/save", "/help"], ["/image", "/save"])
while True:
    try:
        print("READ", repr(reader.read()), flush=True)
    except EOFError:
        break
reader.close()
"""


class Terminal:
    """A process whose stdin, stdout and stderr are a terminal that we type at."""

    def __init__(self, state: Path, term: str = "xterm"):
        self.master, slave = pty.openpty()
        settings = os.environ | {"XDG_STATE_HOME": str(state), "TERM": term}
        command = [sys.executable, "-c", READ]
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=settings)
        os.close(slave)
        self.shown = ""
        self.wait_for("> ")

    def wait_for(self, text: str) -> None:
        """Read what appears up to the text."""
        end = time.monotonic() + 60
        while text not in self.shown:
            assert select.select([self.master], [], [], max(0, end - time.monotonic()))[0], self.shown
            self.shown += os.read(self.master, 4096).decode()
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> None:
        """Leave as a user does, by Ctrl-D."""
        self.type("\x04")
        assert self.process.wait(60) == 0
        os.close(self.master)


def test_pastes_history_and_completion_at_a_terminal(tmp_path):
    pytest.importorskip("readline")
    (tmp_path / "my picture.png").touch()
    terminal = Terminal(tmp_path)
    terminal.type("hello\r")
    terminal.wait_for("READ 'hello'")
    terminal.wait_for("> ")
    terminal.type("\x1b[200~first\nsecond\x1b[201~\r")  # a paste as terminals mark it
    terminal.wait_for("READ 'first\\nsecond'")
    terminal.wait_for("> ")
    terminal.type("third\rfourth\r")  # and as others send it
    terminal.wait_for("READ 'third\\nfourth'")
    terminal.wait_for("> ")
    terminal.type(f"/im\t{tmp_path}/my\t\r")
    terminal.wait_for(f"READ '/image {tmp_path}/my\\\\ picture.png'")
    terminal.wait_for("> ")
    terminal.end()
    again = Terminal(tmp_path)
    again.type("\x1b[A\r")  # up
    again.wait_for(f"READ '/image {tmp_path}/my\\\\ picture.png'")
    again.wait_for("> ")
    again.end()
    assert (tmp_path / "modelwright/chat_history").stat().st_mode & 0o077 == 0


def test_a_history_that_cannot_be_kept_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    terminal = Terminal(tmp_path / "file")
    terminal.type("hello\r")
    terminal.wait_for("READ 'hello'")
    terminal.wait_for("> ")
    terminal.end()


def test_the_history_lies_in_the_users_folder_for_state(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history_file() == tmp_path / ".local/state/modelwright/chat_history"


def test_candidates_are_commands_and_then_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a b.png").touch()
    (tmp_path / "pictures/[1].png").touch()
    reader = LineReader(["/image", "/help"], ["/image"])
    assert reader.candidates("/") == ["/image ", "/help"]
    assert reader.candidates("/he") == ["/help"]
    assert reader.candidates("hello") == []
    assert reader.candidates("/help ") == []
    assert reader.candidates("/image ~/pic") == ["/image ~/pictures/"]
    assert reader.candidates(f"/image {tmp_path}/pictures/") == [
        f"/image {tmp_path}/pictures/[1].png",
        f"/image {tmp_path}/pictures/a\\ b.png",
    ]
    assert reader.candidates(f"/image '{tmp_path}/pictures/a") == [f"/image {tmp_path}/pictures/a\\ b.png"]


@pytest.mark.parametrize("path", ["plain", "a b", "it's", 'a"b', "back\\slash", "tab\there"])
def test_what_is_escaped_is_read_back(path):
    assert unescaped(escaped(path)) == path


def test_no_control_character_reaches_a_terminal():
    assert harmless("a\tb\nc é 中 ") == "a\tb\nc é 中 "
    assert harmless("\x1b[2J\x07\r\x7f\x00") == "␛[2J␇␍␡␀"
    assert harmless("\x9b31m\u202e\u2066") == "\ufffd31m\ufffd\ufffd"
