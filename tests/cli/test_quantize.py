"""``modelwright quantize`` from the command line: its report, the comparison on a text, and its refusals."""

import json
import math
import re
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modelwright import zoo
from modelwright.cli.held_out import HeldOut, held_out_loss, read_texts
from modelwright.cli.quantize import compared
from modelwright.errors import RequestError
from modelwright.serving.load import load
from tests.cli.test_complete_image import write_imagegpt


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in ("two red circles", "a blue square")) + "\n")
    return path


@pytest.mark.slow
def test_the_report_and_the_comparison(run, tmp_path, text):
    lines = run("quantize", "vl2-nano", str(tmp_path / "out"), "--method", "int8", "--eval", str(text)).out.splitlines()
    assert len(lines) == 3
    assert "tensors," in lines[0] and "in 1 file," in lines[0] and "% of the source" in lines[0]
    assert lines[1].startswith("relative error of 102 matrices: mean 0.00")
    assert lines[2].startswith("held-out loss over ") and "int8" in lines[2]


@pytest.mark.slow
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


@pytest.mark.slow
def test_int4_by_what_layers_meet_in_a_file(run, tmp_path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "picture.png")
    picture = str(tmp_path / "picture.png")
    lines = [{"messages": [{"role": "user", "content": "What is it?", "images": [picture]}]} for _ in range(2)]
    lines += [{"prompt": "a red circle above two blue squares " * 60}, {"prompt_token_ids": list(range(5, 90))}]
    file = tmp_path / "calibration.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    how = ("--method", "int4", "--calibrate", file)
    ended = run("quantize", "vl2-nano", tmp_path / "a", *how)
    assert ended.code == 0, ended.err
    said = ended.out.splitlines()
    assert re.fullmatch(rf"calibrated on [\d,]+ tokens of {re.escape(str(file))}", said[0]) and len(said) == 3
    assert run("quantize", "vl2-nano", tmp_path / "c", "--method", "int4").out.splitlines()[1] != said[2]
    model, processor = load(tmp_path / "a", device="cpu")
    assert math.isfinite(held_out_loss(model, processor.tokenizer, ["two red circles"]).loss)


@pytest.mark.parametrize(
    ("name", "content", "method", "message"),
    [
        ("a.txt", "", "int4", "--calibrate {} holds no text"),
        ("a.jsonl", "\n\n", "int4", "--calibrate {} holds no text"),
        ("a.txt", "red circles", "int4", "the calibration has "),
        ("a.jsonl", '{"prompt": 3}', "int4", "--calibrate {}, line 1: prompt must be text, got 3"),
        ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}', "int4", '--calibrate {}, line 2: unknown field "text"'),
        ("a.jsonl", '{"prompt_token_ids": [99999999]}', "int4", "token 99999999 must be below the vocabulary"),
        ("a.txt", "red circles", "int8", "--calibrate is for int4, and --method is int8"),
        ("b", None, "int4", "--calibrate {} cannot be read: No such file or directory"),
    ],
)
def test_calibrations_that_cannot_be_are_refused_in_a_sentence(run, tmp_path, name, content, method, message):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    said = run("quantize", "vl2-nano", tmp_path / "out", "--method", method, "--calibrate", file)
    assert said.code and message.format(file) in said.err and len(said.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_colours_are_calibrated_by_their_tokens(run, tmp_path):
    write_imagegpt(tmp_path / "plain", n_embd=64, n_inner=128, n_head=2)
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps({"prompt_token_ids": [i % 7, 3, i % 5] * 5}) + "\n" for i in range(12)))
    how = ("--method", "int4", "--calibrate")
    said = run("quantize", tmp_path / "plain", tmp_path / "out", *how, file)
    assert said.code == 0 and said.out.startswith("calibrated on 180 tokens"), said.err
    (tmp_path / "text.txt").write_text("a text")
    refused = run("quantize", tmp_path / "plain", tmp_path / "again", *how, tmp_path / "text.txt").err
    assert "the tokens of this model are colours: give a .jsonl file whose lines have prompt_token_ids" in refused


def test_weights_that_are_not_finite_are_refused_by_name(run, tmp_path, vl2):
    shutil.copytree(vl2, tmp_path / "plain")
    (file,) = (tmp_path / "plain").glob("*.safetensors")
    weights = load_file(file)
    name = "language.model.layers.0.self_attn.o_proj.weight"
    weights[name].view(-1)[3] = math.nan
    save_file(weights, file, metadata={"format": "pt"})
    said = run("quantize", tmp_path / "plain", tmp_path / "out")
    assert said.code and f"{name} in {file.name} holds NaN" in said.err and not said.out
    assert not (tmp_path / "out").exists()


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
    [
        ("", "holds no text"),
        ('{"prompt": "a"}', ":1 must be a JSON object with a text"),
        ('{"text": 3}', 'got {"text": 3}'),
        ('{"text": "a", "text": "b"}', "text' twice"),
    ],
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
