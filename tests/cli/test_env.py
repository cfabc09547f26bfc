"""``modelwright env``: what a machine has and who computes what on it; with --check, whether that is right."""

import json
from dataclasses import replace

import pytest

from modelwright.cli import env
from modelwright.cli.main import main
from modelwright.engine.check import Replayed
from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends.cpu import build
from modelwright.ops.check import Compared, compared

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")
ROW = Compared("linear", "cpu", "cpu", "bfloat16", 0.001, 0.02)


def test_it_names_versions_the_machine_and_who_computes(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    ended = run("env")
    assert ended.code == 0
    for part in ("torch", "transformers", "processor", "threads", "memory_gib", "cpu kernels", "decode_attention"):
        assert part in ended.out


def test_json_says_the_same(run):
    said = json.loads(run("env", "--json").out)
    assert set(said) == {"versions", "machine", "kernels", "operations"}
    assert said["machine"]["cpus"] >= 1 and said["versions"]["torch"]
    ops = {(one["op"], one["device"]): one for one in said["operations"]}
    assert ops["linear", "cpu"]["backend"] == ("cpu" if kernels.available() else "torch")


@needs_kernels
def test_check_is_green_here(run):
    ended = run("env", "--check")
    assert ended.code == 0 and "WRONG" not in ended.out and "replayed decode" in ended.out


@needs_kernels
def test_a_wrong_kernel_ends_with_status_1(run, monkeypatch):
    def planted(device):
        rows = list(compared(device))
        yield from (replace(row, worst=0.5) if row.op == "rotate" else row for row in rows)

    monkeypatch.setattr(env, "compared", planted)
    ended = run("env", "--check")
    assert ended.code == 1
    assert all(("WRONG" in line) == line.startswith("rotate") for line in ended.out.splitlines()[1:])


@needs_kernels
@pytest.mark.parametrize(
    ("rows", "replay", "code"),
    [
        ([ROW], Replayed("record", 0.0), 0),
        ([replace(ROW, worst=float("inf"))], Replayed("record", 0.0), 1),
        ([ROW], Replayed("record", 1e-9), 1),
        ([ROW], Replayed("record", float("inf"), "it asks for numbers"), 1),
    ],
)
def test_json_of_the_check_has_every_row_and_the_same_status(run, monkeypatch, rows, replay, code):
    monkeypatch.setattr(env, "compared", lambda device: iter(rows))
    monkeypatch.setattr(env, "replayed", lambda device: replay)
    ended = run("env", "--check", "--json")
    assert ended.code == code
    said = json.loads(ended.out)
    assert said["kernels"][0]["op"] == "linear" and said["replays"][0]["refusal"] == replay.refusal
    assert all(one["right"] for part in ("kernels", "replays") for one in said[part]) == (code == 0)


def test_kernels_that_do_not_serve_because_they_are_wrong_are_told_and_end_with_status_1(run, monkeypatch):
    monkeypatch.setattr(env, "compared", lambda device: iter([ROW]))
    monkeypatch.setattr(env, "refused", lambda device: ("the Triton programs of attention are off by 0.3",))
    ended = run("env", "--check")
    assert ended.code == 1 and ended.out.splitlines()[-1] == "the Triton programs of attention are off by 0.3"
    said = json.loads(run("env", "--check", "--json").out)
    assert said["refused"] == ["the Triton programs of attention are off by 0.3"]


def test_without_kernels_there_is_nothing_to_compare(run, monkeypatch):
    monkeypatch.setattr(env, "compared", lambda device: iter(()))
    monkeypatch.setattr(env.kernels, "available", lambda: False)
    monkeypatch.setattr(env.kernels, "reason", lambda: "there is no compiler")
    ended = run("env", "--check")
    assert ended.code == 0 and ended.out == "there are no kernels to compare here: there is no compiler\n"


def test_a_switch_that_is_neither_on_nor_off_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("MODELWRIGHT_KERNELS", "perhaps")
    monkeypatch.setattr("sys.argv", ["modelwright", "env"])
    monkeypatch.setattr(build, "build", build.build.__wrapped__)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "modelwright: MODELWRIGHT_KERNELS must be 1, on, true, yes or 0, off, false, no, got 'perhaps'\n"
    )
