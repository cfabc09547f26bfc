"""A setting is a flag, a variable and a key of a file, and the first of them that says something is heard."""

import dataclasses
import re

import pytest

from modelwright.errors import ConfigError, RequestError
from modelwright.server.settings import ServerSettings
from modelwright.server.sources import Flag, gather

FLAGS = [Flag("--port"), Flag("--max-batch"), Flag("--no-auth", switch=True), Flag("--cors-origin", repeats=True)]


def words(given=(), environ=None, file=None) -> list[str]:
    return [word for found in gather(FLAGS, given, environ or {}, file) for word in found.words()]


@pytest.fixture
def file(tmp_path):
    def write(text: str):
        path = tmp_path / "serve.yaml"
        path.write_text(text)
        return path

    return write


def test_flag_before_variable_before_file(file):
    path = file("port: 1\nmax_batch: 2\n")
    environ = {"MODELWRIGHT_SERVE_PORT": "3"}
    assert words(file=path) == ["--port=1", "--max-batch=2"]
    assert words(environ=environ, file=path) == ["--port=3", "--max-batch=2"]
    assert words(["--port"], environ, path) == ["--max-batch=2"]


def test_a_list_is_replaced_and_never_joined(file):
    path = file("cors-origin: [https://a.example, https://b.example]\n")
    assert words(file=path) == ["--cors-origin=https://a.example", "--cors-origin=https://b.example"]
    environ = {"MODELWRIGHT_SERVE_CORS_ORIGIN": "https://c.example https://d.example"}
    assert words(environ=environ, file=path) == ["--cors-origin=https://c.example", "--cors-origin=https://d.example"]
    assert words(["--cors-origin"], environ, path) == []


@pytest.mark.parametrize(("value", "want"), [("true", True), ("1", True), ("no", False), ("", False), ("FALSE", False)])
def test_switches_are_true_or_false(file, value, want):
    assert words(environ={"MODELWRIGHT_SERVE_NO_AUTH": value}) == ["--no-auth"] * want
    assert words(file=file(f"no-auth: {value or 'false'}\n")) == ["--no-auth"] * want if value != "1" else True


def test_keys_that_say_nothing_are_left_out(file):
    assert words(file=file("port:\n")) == words(file=file("")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "the key 'prot' of .* stands for no flag; did you mean port?"),
        ("port: 1\nport: 2", "given twice"),
        ("max-batch: 1\nmax_batch: 2", "are the same"),
        ("port: true", "must not be true or false"),
        ("no-auth: 1", "must be true or false"),
        ("port: {a: 1}", "must be one value, got an object"),
        ("port: [1]", "must be one value, got a list"),
        ("cors-origin: [[a]]", "must be text or a number"),
        ("- port", "must hold keys with values"),
        ("port: [", "is no YAML"),
        ("[a]: 1", "is no YAML"),
        ("port: !!python/object/apply:os.system ['true']", "is no YAML"),
    ],
)
def test_a_file_that_says_something_else_is_refused(file, text, message):
    with pytest.raises(ConfigError, match=message):
        words(file=file(text))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MAX_BACTH", "1", "stands for no flag; did you mean MODELWRIGHT_SERVE_MAX_BATCH?"),
        ("X", "1", "stands for no flag"),
        ("CONFIGS", "1", "stands for no flag"),
        ("NO_AUTH", "maybe", "must be true or false, got 'maybe'"),
        ("SERVICE_HOST", "10.0.0.1", "Kubernetes sets it for a service called modelwright-serve"),
        ("PORT_8000_TCP_ADDR", "10.0.0.1", "Kubernetes sets it"),
        ("PORT", "tcp://10.0.0.1:8000", "Kubernetes sets it"),
    ],
)
def test_a_variable_that_stands_for_nothing_is_refused(name, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        words(environ={f"MODELWRIGHT_SERVE_{name}": value})


def test_every_setting_says_what_it_is_for_and_keeps_its_own_rule():
    ServerSettings().check()
    for field in dataclasses.fields(ServerSettings):
        assert field.metadata["limit"].about and field.metadata["group"], field.name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65536),
        ("port", -1),
        ("max_body", 0),
        ("body_timeout", 0.0),
        ("keep_alive", float("nan")),
        ("shutdown_timeout", float("inf")),
        ("max_n", 0),
        ("log_format", "xml"),
        ("tool_format", "llama"),
        ("reasoning", "loud"),
        ("max_queue", -1),
        ("metrics_prefix", "a b"),
        ("metrics_prefix", "1x"),
        ("root_path", "api"),
        ("root_path", "/api/"),
        ("metrics_port", 8000),
        ("tls_cert", "/nowhere.pem"),
        ("tls_key", "/nowhere.pem"),
        ("tls_client_ca", "/nowhere.pem"),
        ("api_key_file", "/nowhere"),
        ("picture_dir", "/nowhere"),
        ("allowed_host", ("",)),
    ],
)
def test_a_value_out_of_its_range_is_told_with_the_name_of_its_flag(name, value):
    from modelwright.cli.option_names import in_options

    with pytest.raises(ConfigError) as caught:
        ServerSettings(**{name: value}).check()
    assert in_options(caught.value).startswith(f"--{name.replace('_', '-')} ") or name in ("tls_cert", "tls_key")


def test_what_is_not_installed_is_told_with_what_installs_it(monkeypatch):
    from modelwright.cli import quick_checks

    monkeypatch.setattr(quick_checks, "find_spec", lambda name: None if name == "uvicorn" else name)
    quick_checks.check_packages(("starlette",), "serve")
    with pytest.raises(
        RequestError, match=re.escape('uvicorn is not installed, which this needs: pip install "modelwright[serve]"')
    ):
        quick_checks.check_packages(("starlette", "uvicorn"), "serve")


def test_print_config_can_be_read_again_and_shows_no_secret(file, tmp_path, capsys, monkeypatch):
    from modelwright.cli import main

    def run(*args: str) -> str:
        monkeypatch.setattr("sys.argv", ["modelwright", "serve", *args])
        with pytest.raises(SystemExit) as left:
            main.main()
        assert not left.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    monkeypatch.setenv("MODELWRIGHT_SERVE_MAX_QUEUE", "9")
    path = file("model: vl2-nano\nport: 0\nmax_batch: 3\nserved-model-name: [a, 'b: c']\n")
    told = run("--config", str(path), "--print-config", "--api-key", "top-secret-1", "--port", "7", "--no-auth")
    assert "top-secret-1" not in told and "# api-key: 1 not shown" in told
    for line in ("port: 7", "max-batch: 3", "max-queue: 9", 'model: "vl2-nano"', "no-auth: true"):
        assert line in told.splitlines()
    again = tmp_path / "again.yaml"
    again.write_text(told)
    monkeypatch.delenv("MODELWRIGHT_SERVE_MAX_QUEUE")
    assert run("--config", str(again), "--print-config") == told.replace("# api-key: 1 not shown", "# api-key:")
    assert run("other", "--config", str(path), "--print-config").startswith('model: "other"')


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 0, "vl2-nano can be served"),
        (("--max-batch", "5000"), 0, "vl2-nano can be served"),
        (("--token-budget", "3"), 2, "--token-budget (3) must be at least --max-batch (64)"),
        (("--max-batch", "9", "--token-budget", "8"), 2, "--token-budget (8) must be at least --max-batch (9)"),
    ],
)
def test_check_finds_limits_that_no_engine_takes(words, code, said, capsys, monkeypatch):
    from modelwright.cli import main

    monkeypatch.setattr("sys.argv", ["modelwright", "serve", "vl2-nano", "--check", "--no-auth", *words])
    with pytest.raises(SystemExit) as left:
        main.main()
    told = capsys.readouterr()
    assert (left.value.code or 0) == code and said in told.out + told.err
