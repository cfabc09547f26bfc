"""What is fetched of a hub's repository: what is read here, what is carried along, and no more."""

from fnmatch import fnmatch

import pytest

from modelwright.checkpoints import source
from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.folder import find_checkpoint
from modelwright.checkpoints.quantize import quantize
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.read import read_config
from tests.llamas import HUGGING_FACE, tiny_llama

READ = {
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tools.jinja",
    "processor_config.json",
}
CARRIED = {"tokenizer.model", "LICENSE", "README.md", "merges.txt"}
IGNORED = {"consolidated.safetensors", "original/params.json", "onnx/model.onnx", "pytorch_model.bin", "run.py"}


@pytest.mark.parametrize(
    ("road", "wanted"),
    [
        (find_checkpoint, READ),
        (lambda name: convert(name, "/nowhere/new"), READ | CARRIED),
        (lambda name: quantize(name, "/nowhere/new", "int8"), READ | CARRIED),
    ],
    ids=["run", "convert", "quantize"],
)
def test_what_is_fetched_is_what_is_used(road, wanted, monkeypatch):
    asked = {}

    def fetch(name, **how):
        asked.update(how)
        raise OSError("offline")

    monkeypatch.setattr(source, "snapshot_download", fetch)
    with pytest.raises(CheckpointError, match="the hub did not answer with it: offline"):
        road("org/name")
    fetched = {
        name
        for name in READ | CARRIED | IGNORED
        if any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])
        and not any(fnmatch(name, pattern) for pattern in asked["ignore_patterns"])
    }
    assert fetched == wanted


def test_config_and_yaml_may_begin_with_a_mark_of_byte_order(tmp_path):
    model = tiny_llama(base=HUGGING_FACE)
    model.save_pretrained(tmp_path)
    for name in ("config.json", "generation_config.json"):
        file = tmp_path / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.hidden_size == model.config.hidden_size
    checkpoint = find_checkpoint(tmp_path)
    assert checkpoint.record.network_class.read(tmp_path, checkpoint.config_class.from_pretrained(tmp_path))


DEEP = {
    "config.json": '{"model_type": "llama", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "not so deep.json": '{"model_type": "llama", "x": ' + "[" * 400 + "]" * 400 + "}",
    "run.yaml": "model: {model_config: {hidden_size: " + "[" * 5000 + "]" * 5000 + "}}",
    "not so deep.yaml": "model: {model_config: {hidden_size: " + "[" * 60 + "]" * 60 + "}}",
    "objects.json": '{"model_type": "deepseek_v2", "a": ' + '{"a": ' * 200 + "1" + "}" * 201,
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_files_are_a_sentence(name, tmp_path):
    (tmp_path / name).write_text(DEEP[name])
    with pytest.raises(ConfigError, match=r"nested|cannot be read as JSON") as caught:
        read_config(tmp_path / name)
    assert len(str(caught.value)) < 300
    if name.endswith("json"):
        with pytest.raises(ConfigError, match="nested"):
            LlamaConfig.from_pretrained(tmp_path / name)
