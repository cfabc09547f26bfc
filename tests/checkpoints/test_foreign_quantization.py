"""Checkpoints that other programs have quantized: one sentence on every road that reads weights, and in a plan."""

import json

import pytest
import torch
from transformers import BitsAndBytesConfig
from transformers.utils.quantization_config import QuantizationMethod

from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.folder import find_checkpoint
from modelwright.checkpoints.quantize import quantize
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families import family_of
from modelwright.families.read import read_config
from modelwright.planner.plan import plan
from tests.fakes import tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama

MODELS = {
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "deepseek_v2": tiny_v2,
    "deepseek_vl2": tiny_vl2,
    "imagegpt": tiny_imagegpt,
}
ROADS = {
    "from_pretrained": lambda model, folder, out: type(model).from_pretrained(folder),
    "network": lambda model, folder, out: network_of(model, folder),
    "find": lambda model, folder, out: find_checkpoint(folder),
    "convert": lambda model, folder, out: convert(folder, out),
    "quantize": lambda model, folder, out: quantize(folder, out, "int8"),
}
SECTIONS = [
    {"quant_method": "gptq", "bits": 4, "group_size": 128},
    {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    {"load_in_8bit": True},
]


def network_of(model, folder):
    network = family_of(model).network_class
    return network.read(folder, network.config_class.from_pretrained(folder))


def stored(folder, model, section, part=None):
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part])["quantization_config"] = section
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.one_in(4)
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.get("quant_method", "unnamed"))
@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("kind", MODELS)
def test_every_road_says_so_in_a_sentence(kind, road, section, tmp_path):
    model = MODELS[kind]()
    folder = stored(tmp_path / "src", model, section)
    method = section.get("quant_method", "unknown")
    with pytest.raises(CheckpointError, match=f'^the checkpoint is quantized by "{method}" .* does not read') as caught:
        ROADS[road](model, folder, tmp_path / "out")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.one_in(4)
@pytest.mark.parametrize("method", [method.value for method in QuantizationMethod])
def test_every_method_of_transformers_is_refused_and_planned_with_a_word(method, tmp_path):
    model = MODELS["llama"]()
    folder = stored(tmp_path / "src", model, {"quant_method": method})
    with pytest.raises(CheckpointError, match=f'quantized by "{method}"'):
        type(model).from_pretrained(folder)
    told = plan(read_config(folder)).without_effect
    assert any(f'quantization_config (weights stored by "{method}"' in line for line in told)


def test_the_language_model_of_a_vision_model_too(tmp_path):
    model = tiny_vl2()
    folder = stored(tmp_path / "src", model, {"quant_method": "fp8"}, "language_config")
    for road in ROADS.values():
        with pytest.raises(CheckpointError, match='quantized by "fp8"'):
            road(model, folder, tmp_path / "out")
    told = plan(read_config(folder)).without_effect
    assert any(line.startswith("language_config.quantization_config") for line in told)


def test_an_argument_of_another_method_than_torchaos_is_refused(tmp_path):
    model = MODELS["llama"]()
    model.save_pretrained(tmp_path)
    for asked in (BitsAndBytesConfig(load_in_8bit=True), {"quant_method": "hqq", "nbits": 4}):
        with pytest.raises(
            ConfigError, match=r'^quantization_config of quant_method ".*" is not served; it may be one'
        ):
            type(model).from_pretrained(tmp_path, quantization_config=asked)


def test_a_model_built_of_such_a_config_saves_its_floats(tmp_path):
    model = tiny_v2(quantization_config={"quant_method": "fp8"})
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
