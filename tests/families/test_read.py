"""read_config: a folder, a config.json or a YAML of any family, and what is refused by name."""

import json
from pathlib import Path

import pytest

from modelwright.errors import ConfigError
from modelwright.families import families
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.read import read_config

HUB = Path(__file__).parents[1] / "data" / "hub_configs"
TINY = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
MINDFORMERS = LlamaConfig(dialect="mindformers", **TINY)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("deepseek-v2", DeepseekV2Config), ("deepseek-vl2-tiny", DeepseekVLV2Config), ("llama-2-7b", LlamaConfig)],
)
def test_a_folder_and_its_file_are_read_alike(name, kind):
    config = read_config(HUB / name)
    assert type(config) is kind
    assert read_config(str(HUB / name / "config.json")) == config


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_every_family_reads_what_it_saves(family, tmp_path):
    config = family.config_class()
    config.save_pretrained(tmp_path)
    assert read_config(tmp_path) == config


def test_a_folder_with_one_yaml_is_mindformers(tmp_path):
    config = MINDFORMERS
    config.to_mindformers(tmp_path / "run.yaml")
    assert read_config(tmp_path) == read_config(tmp_path / "run.yaml") == config
    config.to_mindformers(tmp_path / "other.yml")
    with pytest.raises(ConfigError, match=r"a config.json or one YAML file, and holds other.yml, run.yaml"):
        read_config(tmp_path)


def test_json_in_mindformers_words_is_a_llama(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert read_config(tmp_path) == MINDFORMERS
    (tmp_path / "config.json").write_text(json.dumps({"model": {"model_config": TINY}}))
    assert read_config(tmp_path) == MINDFORMERS


@pytest.mark.parametrize(
    ("file", "dialect"),
    [
        ({"model_type": "llama"}, "hugging_face"),
        ({"model_type": "llama", "num_layers": 2, "use_past": True, "seq_length": 64}, "hugging_face"),
        ({"model_type": "llama", "dialect": "mindformers"}, "mindformers"),
        ({"model_type": "llama", "mindformers_version": "1.3.2", "num_layers": 2}, "mindformers"),
        ({"model_type": "llama", "mindformers_version": "1.3.2", "dialect": "hugging_face"}, "hugging_face"),
        (TINY, "mindformers"),
        ({"model": {"model_config": TINY}}, "mindformers"),
    ],
)
def test_a_files_dialect_is_stated_and_kept(file, dialect, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(file))
    config = read_config(tmp_path)
    assert isinstance(config, LlamaConfig)
    assert (config.dialect, config.rms_norm_eps) == (dialect, 1e-5 if dialect == "mindformers" else 1e-6)
    config.save_pretrained(tmp_path / "again")
    assert read_config(tmp_path / "again") == config
    config.to_mindformers(tmp_path / "run.yaml")
    assert read_config(tmp_path / "run.yaml").dialect == "mindformers"  # type: ignore[attr-defined]


def test_a_file_that_an_earlier_release_saved_from_a_run_keeps_every_value(tmp_path):
    """It states no dialect, and every field that the two have different defaults for."""
    MINDFORMERS.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["dialect"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path).to_dict() == MINDFORMERS.to_dict() | {"dialect": "hugging_face"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "gpt2"}', "model_type 'gpt2'; it must be one of deepseek_v2, .*llama"),
        ("{}", "has model_type None; it must be one of"),
        ("[]", "must hold a JSON object, and holds a list"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_what_is_no_config_of_ours_is_refused(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.json is neither a file nor a folder"):
        read_config(tmp_path / "nothing.json")
    with pytest.raises(ConfigError, match="and holds neither"):
        read_config(tmp_path)
