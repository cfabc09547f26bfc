"""The command itself: help without the libraries, the version, and how errors end."""

import os
import signal
import subprocess
import sys

import pytest

import modelwright
from modelwright.cli import main as cli_main
from modelwright.errors import CheckpointError, ConfigError, RequestError
from tests.checkpoints.gguf.files import llama_metadata, llama_tensors, write_file
from tests.checkpoints.tiny import PICTURE
from tests.cli.test_complete_image import write_imagegpt

OPTIONS = """image draw max-tokens temperature top-p top-k repetition-penalty seed token-budget dtype device system
json stats"""
COMMANDS = [
    "bench",
    "chat",
    "complete-image",
    "convert",
    "data",
    "env",
    "evaluate",
    "export",
    "generate",
    "models",
    "plan",
    "quantize",
    "train",
]


HEAVY = ("torch", "transformers", "PIL", "numpy")
SLOW = ("transformers.modeling_utils", "transformers.processing_utils", "torch._dynamo", "sympy", "scipy", "accelerate")
"""What takes seconds to import and no answer needs; torch itself and transformers' configs are needed."""


def in_a_new_process(*args: str, heavy: tuple[str, ...] = HEAVY, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command line in a fresh interpreter, which then says on stderr which heavy packages it imported."""
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; sys.argv = ['modelwright', *{list(args)!r}]\n"
        "import atexit\n"
        f"heavy = {heavy!r}\n"
        "atexit.register(lambda: print('imported:', *[n for n in heavy if n in sys.modules], file=sys.stderr))\n"
        "from modelwright.cli.main import main; main()"
    )
    surroundings = os.environ | variables
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=surroundings)


def as_a_module(*args: str) -> subprocess.CompletedProcess[str]:
    """``python -m modelwright`` with these arguments."""
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "modelwright", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=paths)


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("--version",),
        *(pytest.param((command, "--help"), marks=pytest.mark.slow) for command in COMMANDS),
    ],
)
def test_help_and_version_import_nothing_heavy(args):
    done = in_a_new_process(*args)
    assert done.returncode == 0
    assert done.stderr.strip() == "imported:"


@pytest.mark.parametrize("moment", ["typer", "torch"])
def test_ctrl_c_while_libraries_are_imported_leaves_no_traceback(tmp_path, moment):
    (tmp_path / f"{moment}.py").write_text("raise KeyboardInterrupt")
    paths = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "modelwright", "chat", "vl2-nano", "Hi"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=paths)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("ignored", [False, True], ids=["heard", "ignored"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_command_that_a_signal_ends_leaves_nothing_half_written(tmp_path, name, ignored):
    """Neither the new folder by its hidden name nor the temporary one of a GGUF file; `nohup` has signals ignored."""
    source = write_file(tmp_path / "model.gguf", llama_metadata(), llama_tensors("F32"))
    temporary, out = tmp_path / "temporary", tmp_path / "out"
    temporary.mkdir()
    number = signal.Signals[name]
    code = (
        f"import os, signal, sys; sys.path[:0] = {sys.path!r}\n"
        f"sys.argv = ['modelwright', 'convert', {str(source)!r}, {str(out)!r}]\n"
        f"signal.signal({number}, signal.SIG_IGN if {ignored} else signal.SIG_DFL)\n"
        "def when_it_is_written(event, args):\n"
        f"    if event == 'os.rename' and str(args[1]) == {str(out)!r}:\n"
        f"        os.kill(os.getpid(), {number})\n"
        "sys.addaudithook(when_it_is_written)\n"
        "from modelwright.__main__ import main; main()"
    )
    surroundings = os.environ | {"TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=surroundings)
    assert done.returncode == (0 if ignored else 128 + number), done.stderr
    assert done.stderr == "" or ignored
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf", "temporary"} | ({"out"} if ignored else set())
    assert not [path.name for path in temporary.iterdir() if path.name.startswith("modelwright")]


def test_wrong_options_are_refused_before_anything_heavy_is_imported():
    done = in_a_new_process("chat", "How many?", "--max-new-tokens", "-3")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["modelwright: --max-new-tokens must be at least 0, got -3", "imported:"]


def test_python_m_is_the_same_command():
    assert as_a_module("--version").stdout == f"modelwright {modelwright.__version__}\n"
    assert "Usage: modelwright chat" in as_a_module("chat", "--help").stdout
    refused = as_a_module("chat", "How many?", "--max-new-tokens", "-3")
    assert (refused.returncode, refused.stderr) == (2, "modelwright: --max-new-tokens must be at least 0, got -3\n")


@pytest.mark.slow
def test_a_shell_completes_commands_and_options_without_waiting_for_the_libraries():
    """What the script that ``--install-completion`` leaves with the shell asks for at each press of the key."""
    for typed, completed in (("cha", ["chat"]), ("chat --max-t", ["--max-tokens"]), ("chat vl2", ["vl2-nano"])):
        words = f"modelwright {typed}"
        asked = {"_MODELWRIGHT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = in_a_new_process(**asked)
        assert (done.stdout.split(), done.stderr.strip()) == (completed, "imported:")


def test_completion_is_installed_for_a_shell_by_an_option(run):
    assert "--install-completion" in run("--help").out
    script = in_a_new_process(_MODELWRIGHT_COMPLETE="source_bash").stdout
    assert "complete -o default -F _modelwright_completion modelwright" in script


@pytest.mark.parametrize("model", ["vl2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("v2", "imagegpt"))])
def test_an_answer_imports_nothing_that_it_does_not_need(request, tmp_path, model):
    """The engine runs plain modules: transformers' classes of models and processors are not imported for it."""
    if model == "imagegpt":
        folder = write_imagegpt(tmp_path / "pictures")
        lines, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        lines.write_text('{"prompt_token_ids": [3, 1], "max_tokens": 4}\n')
        done = in_a_new_process("generate", str(folder), "-i", str(lines), "-o", str(output), heavy=SLOW)
    else:
        folder = request.getfixturevalue(model)
        shown = ("--image", str(PICTURE)) if model == "vl2" else ()
        done = in_a_new_process("chat", str(folder), "Hello", *shown, "--max-new-tokens", "4", heavy=SLOW)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "imported:"


def test_help_names_the_commands_and_their_options(run):
    listed = run("--help").out
    assert "chat" in listed and "models" in listed
    options = run("chat", "--help").out
    for option in OPTIONS.split():
        assert f"--{option}" in options


def test_the_version(run):
    assert run("--version").out == f"modelwright {modelwright.__version__}\n"


@pytest.mark.parametrize("args", [(), ("sing",), ("chat", "--loud"), ("chat", "a", "b", "c"), ("chat", "--seed", "x")])
def test_wrong_usage_ends_with_status_2(run, args):
    assert run(*args).code == 2


@pytest.mark.parametrize("error", [ConfigError, CheckpointError, RequestError])
def test_a_users_error_is_one_sentence_on_stderr(run, monkeypatch, error):
    def fail(**_):
        raise error("first\nsecond")

    monkeypatch.setattr(cli_main, "app", fail)
    ended = run("models")
    assert (ended.code, ended.out, ended.err) == (2, "", "modelwright: first second\n")


def test_an_error_of_ours_keeps_its_traceback(run, monkeypatch):
    def fail(**_):
        raise ValueError("a mistake")

    monkeypatch.setattr(cli_main, "app", fail)
    with pytest.raises(ValueError, match="a mistake"):
        run("models")
