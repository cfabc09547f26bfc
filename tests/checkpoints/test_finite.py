"""Weights that are no numbers, or none in the type asked for: refused by name on every road that reads weights."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.folder import find_checkpoint
from modelwright.checkpoints.quantize import quantize
from modelwright.errors import CheckpointError
from tests.fakes import MOE, tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama

MODELS = {
    "llama": (lambda: tiny_llama(base=HUGGING_FACE), "model.layers.1.mlp.up_proj.weight"),
    "deepseek_v2": (lambda: tiny_v2(base=MOE), "model.layers.1.mlp.experts.5.down_proj.weight"),
    "deepseek_vl2": (tiny_vl2, "vision.blocks.0.attn.qkv.bias"),
    "imagegpt": (tiny_imagegpt, "transformer.wpe.weight"),
}
ROADS = {
    "from_pretrained": lambda model, folder, out: type(model).from_pretrained(folder),
    "network": lambda model, folder, out: read_network(folder),
    "convert": lambda model, folder, out: convert(folder, out),
    "quantize": lambda model, folder, out: quantize(folder, out, "int8"),
}


def read_network(folder, dtype="auto"):
    checkpoint = find_checkpoint(folder)
    config = checkpoint.config_class.from_pretrained(folder)
    return checkpoint.record.network_class.read(folder, config, dtype)


def with_value(folder, model, name, value, dtype=torch.float32):
    model.save_pretrained(folder)
    weights = {key: tensor.to(dtype) for key, tensor in load_file(folder / "model.safetensors").items()}
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (-float("inf"), "an infinity")])
@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_no_number_is_refused_by_name(kind, road, value, word, tmp_path):
    make, name = MODELS[kind]
    model = make()
    folder = with_value(tmp_path / "src", model, name, value, torch.bfloat16)
    with pytest.raises(CheckpointError, match=f"^{name} in model.safetensors holds {word}"):
        ROADS[road](model, folder, tmp_path / "out")
    assert os.listdir(tmp_path) == ["src"]


NARROW = {
    "from_pretrained": lambda model, folder, out: type(model).from_pretrained(folder, dtype="float16"),
    "network": lambda model, folder, out: read_network(folder, "float16"),
    "convert": lambda model, folder, out: convert(folder, out, dtype="float16"),
}


@pytest.mark.parametrize("road", NARROW)
def test_what_does_not_fit_the_type_asked_for_is_refused_by_name(road, tmp_path):
    make, name = MODELS["deepseek_v2"]
    folder = with_value(tmp_path / "src", make(), name, -65520.0)  # the first that rounds to infinity
    rule = f"^{name} reaches 65520, and float16 ends at 65504; keep float32, or take bfloat16$"
    with pytest.raises(CheckpointError, match=rule):
        NARROW[road](make(), folder, tmp_path / "out")
    assert os.listdir(tmp_path) == ["src"]
    assert torch.isfinite(with_rounding(tmp_path, make, name)).all()


def with_rounding(tmp_path, make, name):
    """The last that does not, through convert."""
    convert(with_value(tmp_path / "least", make(), name, 65519.0), tmp_path / "made", dtype="float16")
    return load_file(tmp_path / "made" / "model.safetensors")[name]


def test_the_check_follows_the_type_in_the_config(tmp_path):
    make, name = MODELS["deepseek_v2"]
    folder = with_value(tmp_path / "src", make(), name, 1e5)
    text = (folder / "config.json").read_text().replace('"dtype": "float32"', '"dtype": "float16"')
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"^{name} reaches 100000, and float16"):
        quantize(folder, tmp_path / "out", "int8")
    assert read_network(folder, "bfloat16").dtype == torch.bfloat16
