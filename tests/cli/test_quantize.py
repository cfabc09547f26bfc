"""``modelwright quantize`` from the command line: its report, the comparison on a text, and its refusals."""

import json
import math

import pytest
import torch

from modelwright import zoo
from modelwright.cli.held_out import HeldOut, held_out_loss, read_texts
from modelwright.cli.quantize import compared
from modelwright.errors import RequestError
from modelwright.serving.load import load


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in ("two red circles", "a blue square")) + "\n")
    return path


def test_the_report_and_the_comparison(run, tmp_path, text):
    lines = run("quantize", "vl2-nano", str(tmp_path / "out"), "--method", "int8", "--eval", str(text)).out.splitlines()
    assert len(lines) == 3
    assert "tensors," in lines[0] and "in 1 file," in lines[0] and "% of the source" in lines[0]
    assert lines[1].startswith("relative error of 102 matrices: mean 0.00")
    assert lines[2].startswith("held-out loss over ") and "int8" in lines[2]


def test_int4_has_offsets_in_groups_of_32_unless_asked_otherwise(run, tmp_path):
    for more, config, share in (
        ((), {"group_size": 32, "symmetric": False}, "offset"),
        (("--group", "64", "--symmetric"), {"group_size": 64, "symmetric": True}, "scale"),
    ):
        out = tmp_path / share
        assert "tensors," in run("quantize", "vl2-nano", str(out), "--method", "int4", *more).out
        written = json.loads((out / "config.json").read_text())["quantization_config"]
        assert written == {"quant_method": "int4_weight_only", **config}


@pytest.mark.parametrize(
    ("option", "named"), [(("--group", "64"), r"group (64)"), (("--symmetric",), "symmetric (True)")]
)
def test_what_int8_has_not_is_refused(run, tmp_path, option, named):
    said = run("quantize", "vl2-nano", str(tmp_path / "out"), *option)
    assert said.code and f"{named} is for int4, and the method is int8" in said.err
    assert len(said.err.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_the_loss_is_that_of_the_model():
    model, processor = load(zoo.path("vl2-nano"), device="cpu")
    tokenizer = processor.tokenizer
    measured = held_out_loss(model, tokenizer, ["two red circles"])
    ids = torch.tensor([tokenizer("two red circles")["input_ids"]])
    with torch.no_grad():
        wanted = model(input_ids=ids, labels=ids).loss
    assert measured.tokens == ids.shape[1] - 1
    assert measured.loss == pytest.approx(float(wanted), rel=1e-4)
    assert measured.perplexity == pytest.approx(math.exp(measured.loss))


def test_the_difference_is_spelt_out():
    line = compared(("bfloat16", HeldOut(2.0, 1234)), ("bfloat16", HeldOut(2.01, 1234)), "int4")
    assert "1,234 tokens: bfloat16 2.0000 (perplexity 7.389), int4 2.0100" in line
    assert line.endswith("+0.0100 (perplexity +1.01%)")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no text"), ('{"prompt": "a"}', ":1 must be a JSON object with a text"), ('{"text": 3}', "got 3")],
)
def test_files_without_texts_are_refused(tmp_path, content, message):
    path = tmp_path / "held_out.jsonl"
    path.write_text(content)
    with pytest.raises(RequestError, match=message):
        read_texts(path)


def test_a_plain_file_is_one_text(tmp_path):
    path = tmp_path / "held_out.txt"
    path.write_text("one\ntwo\n")
    assert read_texts(path) == ["one\ntwo\n"]
