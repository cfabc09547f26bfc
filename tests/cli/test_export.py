"""``modelwright export onnx`` on a tiny Llama: what it writes, what it says, and how it refuses."""

import re
from pathlib import Path

import numpy as np
import pytest

from modelwright.cli.export import summary
from modelwright.export import OnnxDecoder
from modelwright.export.onnx import GraphFile, Report
from modelwright.export.verify import Delta, Shape, Verification
from tests.llamas import HUGGING_FACE, tiny_llama


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    tiny_llama(base=HUGGING_FACE, num_hidden_layers=1, dtype="bfloat16").save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.slow
def test_a_checkpoint_becomes_a_folder_that_generates(run, source, tmp_path):
    ended = run("export", "onnx", source, tmp_path / "ein Modell", "--draws", "4")
    assert (ended.code, ended.err) == (0, "")
    head, graph, title, *table, greedy = ended.out.splitlines()
    assert head == f"{tmp_path / 'ein Modell'}: llama in float32, opset 20"
    assert re.fullmatch(r"decoder\.onnx: \d+\.\d kB", graph)
    assert title == "max |onnxruntime - PyTorch| over 4 drawn shapes:"
    assert [line.split()[0] for line in table] == ["logits", "present.*.key", "present.*.value"]
    assert all(re.search(r"  \d\.\de-\d\d  \(batch \d, sequence \d, past \d+", line) for line in table)
    assert greedy == "greedy tokens: the same 32"
    assert OnnxDecoder(tmp_path / "ein Modell", threads=1).generate(np.array([[5, 6]]), 3).shape[0] == 1
    assert sorted(path.name for path in (tmp_path / "ein Modell").iterdir()) == [
        "config.json", "decoder.onnx", "generation_config.json", "modelwright_onnx.json", "tokenizer.json",
    ]  # fmt: skip


def test_the_summary():
    deltas = (
        Delta("logits", 3e-6, Shape(2, 5, 0, True)),
        Delta("present.0.key", 1e-7, Shape(1, 1, 0)),
        Delta("present.1.key", 2e-7, Shape(1, 1, 9)),
    )
    report = Report(
        Path("out"), "llama", "float16", 18, (GraphFile("decoder", 1200, 5_000_000),),
        Verification("float16", 7, deltas, 32, 2),
    )  # fmt: skip
    assert summary(report).splitlines() == [
        "out: llama in float16, opset 18",
        "decoder.onnx: 1.2 kB and 5.0 MB of weights beside it",
        "max |onnxruntime - PyTorch| over 7 drawn shapes:",
        "  logits         3.0e-06  (batch 2, sequence 5, past 0, left padding)",
        "  present.*.key  2.0e-07  (batch 1, sequence 1, past 9)",
        "greedy tokens: the same 32, 2 of them between scores too close to tell apart",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--dtype", "bfloat16"),
            "--dtype must be one of float32, float16; got 'bfloat16'; did you mean float16?",
        ),
        (("--opset", "3"), "--opset must be from 18 to 23, got 3"),
        (("--draws", "0"), "--draws must be at least 1, got 0"),
    ],
)
def test_a_refusal_is_one_sentence(run, source, tmp_path, options, message):
    ended = run("export", "onnx", source, tmp_path / "out", *options)
    assert (ended.code, ended.out) == (2, "") and ended.err.startswith(f"modelwright: {message}")
    assert ended.err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_place_that_is_taken_and_a_source_that_is_not_there(run, source, tmp_path):
    assert "no export of ours" in run("export", "onnx", source, source).err
    assert "is not a folder" in run("export", "onnx", tmp_path / "no" / "such", tmp_path / "out").err
    assert run("export", "onnx").code == 2
