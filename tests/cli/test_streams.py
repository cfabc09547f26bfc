"""What a shell may connect a command to: pipes, devices, closed and full streams, bytes that are no text."""

import io
import json
import os
import subprocess
import sys
import threading

import pytest

from modelwright.cli.main import main
from modelwright.cli.streams import as_text
from tests.checkpoints.tiny import PICTURE

LINE = '{"prompt_token_ids": [5, 6], "max_tokens": 1}\n'
FULL = "modelwright: stdout cannot be written: No space left on device\n"


def in_a_shell(command: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash, in which ``modelwright`` is this Python's."""
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    line = f'modelwright() {{ "{sys.executable}" -m modelwright "$@"; }}; {command}'
    return subprocess.run(["bash", "-c", line], capture_output=True, timeout=600, env=paths)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("command", "status", "sentence"),
    [
        ("modelwright models > /dev/full", 1, "stdout cannot be written: No space left on device"),
        ("modelwright --help > /dev/full", 1, "stdout cannot be written: No space left on device"),
        ("modelwright models --json >&-", 1, "stdout cannot be written: Bad file descriptor"),
        ("modelwright chat vl2-nano $'\\xff'", 2, r"PROMPT must be text in UTF-8, got '\udcff'"),
        ("modelwright chat vl2-nano hi --system $'\\xff'", 2, r"--system must be text in UTF-8, got '\udcff'"),
        ("modelwright plan $'/\\xff'", 2, r"MODEL must be text in UTF-8, got '/\udcff'"),
    ],
)
def test_what_cannot_be_is_one_sentence(command, status, sentence):
    done = in_a_shell(command)
    assert (done.returncode, done.stderr.decode()) == (status, f"modelwright: {sentence}\n")


def test_an_argument_in_utf8_is_text_whatever_the_system_reads():
    """Python reads it as halves of surrogate pairs where the system's encoding is ASCII."""
    done = in_a_shell("PYTHONUTF8=0 LC_ALL=C modelwright chat ./nowhere $'\\xc3\\xa9?'")
    assert (done.returncode, done.stderr.decode()[:42]) == (2, "modelwright: ./nowhere is not a folder and")
    assert as_text("é?".encode().decode("ascii", "surrogateescape")) == as_text("é?") == "é?"
    assert as_text("\udcff") == "\udcff"


@pytest.mark.slow
def test_nobody_is_told_where_stderr_is_full_or_closed():
    for where in ("2>/dev/full", "2>&-"):
        assert in_a_shell(f"modelwright models --json {where}").stdout.startswith(b"[")
        refused = in_a_shell(f"modelwright chat vl2-nan {where}")
        assert (refused.returncode, refused.stdout) == (2, b"")


@pytest.fixture
def on_a_full_disk(monkeypatch, capsys):
    """A command whose stdout lies on a full disk: its status and stderr."""

    def command(*args, stdin: str = "") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["modelwright", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with open("/dev/full", "wb", buffering=0) as full, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", io.TextIOWrapper(full))
            with pytest.raises(SystemExit) as ended:
                main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return command


@pytest.mark.parametrize(
    "args",
    [
        ("convert", "{v2}", "{new}"),
        ("quantize", "{v2}", "{new}"),
        ("chat", "{v2}", "Hello", "--max-tokens", 1),
        ("chat", "{v2}", "Hello", "--max-tokens", 1, "--json"),
        ("models",),
        ("plan", "{v2}"),
        ("plan", "{v2}", "--json"),
        ("env", "--json"),
        ("bench", "latency", "{v2}", "--requests", 1, "--repeats", 1, "--warmup", 0, "--output-len", 1, "--json"),
        ("bench", "throughput", "{v2}", "--requests", 1, "--repeats", 1, "--warmup", 0, "--output-len", 1),
    ],
)
def test_a_full_stdout_is_one_sentence(on_a_full_disk, v2, tmp_path, args):
    args = [str(each).format(v2=v2, new=tmp_path / "new") for each in args]
    assert on_a_full_disk(*args) == (1, FULL)


def test_a_full_stdout_ends_a_session_and_a_run(on_a_full_disk, v2, tmp_path):
    assert on_a_full_disk("chat", v2, "--max-tokens", 1, stdin="Hello\nHello\n") == (1, FULL)
    assert on_a_full_disk("generate", v2, "-i", "-", "-o", "-", stdin=LINE * 2) == (1, FULL)
    (tmp_path / "in").write_text(LINE)
    ended = on_a_full_disk("generate", v2, "-i", tmp_path / "in", "-o", "/dev/full")
    assert ended == (1, "modelwright: --output /dev/full: the file cannot be written: No space left on device\n")


class Closed(io.RawIOBase):
    """What stands for a closed stdin."""

    def readable(self) -> bool:
        return True

    def readinto(self, _) -> int:
        raise OSError(9, os.strerror(9))


@pytest.mark.parametrize("args", [("generate", "{v2}", "-i", "-", "-o", "-"), ("chat", "{v2}")])
def test_a_closed_stdin_is_one_sentence(run, v2, monkeypatch, args):
    ended = run(*(each.format(v2=v2) for each in args), stdin=io.TextIOWrapper(io.BufferedReader(Closed())))
    assert (ended.code, ended.err) == (1, "modelwright: stdin cannot be read: Bad file descriptor\n")


def test_a_mark_before_the_first_line_is_no_part_of_it(run, v2):
    ended = run("generate", v2, "-i", "-", "-o", "-", stdin=_bytes(b"\xef\xbb\xbf" + LINE.encode()))
    assert (ended.code, json.loads(ended.out)["id"], "error" in ended.out) == (0, 1, False)
    assert run("chat", v2, stdin=_bytes(b"\xef\xbb\xbf/exit\n")).code == 0


def test_bytes_that_are_no_text_are_refused_and_what_follows_is_answered(run, v2):
    ended = run("chat", v2, "--max-tokens", 1, stdin=_bytes(b"a\xff\nHello\n"))
    assert (ended.code, ended.err.splitlines()[0]) == (2, "modelwright: the line is no text in UTF-8")
    assert ended.out
    ended = run("generate", v2, "-i", "-", "-o", "-", stdin=_bytes(b'"\xff"\n' + LINE.encode()))
    first, second = map(json.loads, ended.out.splitlines())
    assert (ended.code, first["error"]) == (1, "line 1: the line is not UTF-8: byte 2 is 0xff")
    assert "error" not in second


def test_a_pipe_is_read_and_a_device_written(run, v2, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(LINE))
    writer.start()
    ended = run("generate", v2, "-i", pipe, "-o", "/dev/null")
    writer.join()
    assert (ended.code, ended.err.startswith("/dev/null: 1 line")) == (0, True)


@pytest.mark.slow
def test_answers_to_the_devices_of_stdin_and_stdout(v2):
    """Where a file of that name was opened to be read on, this waited for ever."""
    line = f"printf '{LINE.strip()}\\n' | modelwright generate {v2} -i /dev/stdin -o /dev/stdout"
    done = in_a_shell(line)
    assert (done.returncode, json.loads(done.stdout)["id"]) == (0, 1)


def test_a_folder_is_no_input(run, v2, tmp_path):
    for args in (("generate", v2, "-i", tmp_path, "-o", "-"), ("bench", "latency", v2, "--input", tmp_path)):
        ended = run(*args)
        assert (ended.code, ended.err) == (2, f"modelwright: --input {tmp_path} is a folder; it must be a file\n")


def test_a_name_longer_than_any_file_has_is_one_sentence(run, v2):
    name = "x" * 300
    assert run("plan", f"/{name}").err == f"modelwright: /{name} is not a folder and not a hub id\n"
    ended = run("convert", v2, f"/tmp/{name}")
    assert (ended.code, ended.err.count("\n"), "File name too long" in ended.err) == (2, 1, True)
    ended = run("chat", v2, "Hello", "--image", PICTURE, "--draw", f"{name}.png")
    assert (ended.code, ended.err.count("\n")) == (2, 1)


def _bytes(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content))
