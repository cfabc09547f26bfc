"""``modelwright checkpoint`` on the output of a small run: what it lists, verifies and writes, and how it refuses."""

import json

import pytest
import torch

from modelwright import load
from modelwright.configs.run import RunConfig
from modelwright.training.checkpoints import Checkpoints
from tests.training.checkpoints.states import Part


@pytest.fixture
def output(v2, tmp_path):
    """The output of a run of three checkpoints, of which the last has a broken file."""
    run = RunConfig.of({"model": {"path": v2.name}, "output": "runs/x", "steps": 3}).to_dict()
    model = load(v2, device="cpu").model
    with Checkpoints(tmp_path / "runs" / "checkpoints", Part(keep=5)) as checkpoints:
        for step in (1, 2, 3):
            weights = {f"model.{name}": tensor + step for name, tensor in model.named_parameters()}
            checkpoints.save(step, weights, {"base": str(v2.parent)}, run)
    broken = tmp_path / "runs" / "checkpoints" / "step-000003" / "train.json"
    broken.write_text(broken.read_text().replace("3", "4"))
    return tmp_path / "runs"


def test_ls(run, output):
    ended = run("checkpoint", "ls", output)
    lines = ended.out.splitlines()
    assert (ended.code, ended.err) == (0, "") and lines[0].split() == ["step", "written", "size", "state"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"] and all("whole" in line for line in lines[1:])
    (output / "checkpoints" / "step-000002" / "run.yaml").unlink()
    rows = json.loads(run("checkpoint", "ls", output / "checkpoints", "--json").out)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[1]["state"].startswith("broken: ") and "lacks its file run.yaml" in rows[1]["state"]


def test_verify(run, output):
    ended = run("checkpoint", "verify", output)
    assert ended.code == 1
    assert [line.split()[0] for line in ended.out.splitlines()] == ["whole", "whole", "broken"]
    assert "train.json" in ended.out.splitlines()[2]
    assert run("checkpoint", "verify", output, "2").code == 0
    assert run("checkpoint", "verify", output / "checkpoints" / "step-000003").code == 1


def test_export_takes_the_newest_that_is_whole(run, output, v2, tmp_path):
    ended = run("checkpoint", "export", output, tmp_path / "out", "--dtype", "bfloat16")
    assert ended.code == 0 and ended.out == f"{tmp_path / 'out'}: the model of step 2\n"
    assert ended.err.startswith("not used: ") and "step-000003" in ended.err
    found, base = load(tmp_path / "out", device="cpu").model, load(v2, device="cpu").model
    for name, tensor in base.named_parameters():
        assert torch.equal(found.get_parameter(name), (tensor + 2).bfloat16())
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_export_of_a_step_to_mindformers_is_that_of_convert(run, output, v2, tmp_path):
    assert run("checkpoint", "export", output, tmp_path / "one", "1", "--source", v2).code == 0
    assert run("checkpoint", "export", output, tmp_path / "three", "3").code == 2
    refused = run("checkpoint", "export", output, tmp_path / "mf", "1", "--to", "mindformers")
    assert refused.code == 2 and not (tmp_path / "mf").exists()  # of DeepSeek-V2 there is no such layout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("ls", "nowhere"), "there is no folder nowhere"),
        (("verify", "{output}", "7"), "STEP must be one of 1, 2, 3, got 7"),
        (("export", "{output}", "x", "--dtype", "int8"), "--dtype"),
        (("export", "{output}", "x", "--to", "gguf"), "--to"),
        (("ls", "{output}/checkpoints/step-000001/state"), "holds no checkpoint: name the output of a run"),
    ],
)
def test_refusals(run, output, args, said):
    ended = run("checkpoint", *(arg.format(output=output) for arg in args))
    assert ended.code == 2 and said in ended.err and ended.err.count("\n") == 1
