"""The records: every reference leads somewhere, lookups need no model, and what a record says of a family is true."""

import inspect
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest

from modelwright.checkpoints.dialect import TensorDialect, dialect_called
from modelwright.errors import ConfigError
from modelwright.families import (
    BUILT_IN,
    Family,
    architecture_of,
    causal_family,
    families,
    family_of,
    find_family,
    forget_family,
    register_family,
    resolve,
)
from modelwright.planner.counting import count
from tests.fakes import tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import tiny_llama

TINY = {"deepseek_v2": tiny_v2, "deepseek_vl2": tiny_vl2, "imagegpt": tiny_imagegpt, "llama": tiny_llama}
EACH = pytest.mark.parametrize("family", families(), ids=lambda family: family.name)


def references(family: Family) -> list[str]:
    """Every reference that a record holds."""
    parts = [getattr(family, field.name) for field in fields(family)]
    parts += list(family.architectures.values())
    parts += [] if family.dialect is None else [getattr(family.dialect, f.name) for f in fields(family.dialect)]
    return [part for part in parts if isinstance(part, str) and ":" in part]


@EACH
def test_every_reference_leads_somewhere(family):
    found = references(family)
    assert len(found) > len(family.architectures) + 4
    assert all(callable(resolve(reference)) or resolve(reference) is not None for reference in found)


def test_every_folder_of_a_family_is_listed_once():
    listed = [reference.removesuffix(":FAMILY").rpartition(".")[2] for reference in BUILT_IN]
    assert [family.name for family in families()] == listed == sorted(TINY)


def test_lookups_import_neither_torch_nor_transformers():
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from modelwright.families import architecture_of, families
assert len(families()) == {len(BUILT_IN)}
family, name = architecture_of({{"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"}})
assert (family.name, name) == ("llama", "LlamaForSequenceClassification")
print(*sorted({{"torch", "transformers"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@EACH
def test_classes_and_configs_belong_together(family):
    assert family.config_class.model_type == family.model_type
    for architecture in family.architectures:
        kind = family.model_class(architecture)
        assert kind.config_class is family.config_class
        assert causal_family(kind) is (family if kind is family.causal_class else None)
    assert family.causal_class.can_generate()


@EACH
def test_what_it_can_do_is_true(family):
    model = TINY[family.name]()
    assert family_of(model) is family_of(model.config) is family
    assert family.decoder_of(model).get_input_embeddings() is model.get_input_embeddings()
    assert family.sees_pictures == hasattr(model, "encode_pictures") == (family.decoder_of(model) is not model)
    assert family.trains == ("labels" in inspect.signature(type(family.decoder_of(model)).forward).parameters)
    assert (family.draws == "pixels") == hasattr(model.config, "start_token_id")


@EACH
def test_planner_and_engine_count_the_same_cache(family):
    config: Any = TINY[family.name]().config
    layout = resolve(family.cache)(config.get_text_config())
    assert layout.numbers == count(config).kv_numbers
    assert layout.of_ranks(1) == layout


def test_abilities_in_words():
    said = {family.name: family.abilities for family in families()}
    assert said == {
        "deepseek_v2": ("draws text", "trains", "exports"),
        "deepseek_vl2": ("draws text", "sees pictures", "trains", "exports"),
        "imagegpt": ("draws pixels", "trains", "exports"),
        "llama": ("draws text", "trains", "exports"),
    }


def test_architectures_come_before_the_type():
    other = {"architectures": ["DeepseekV2Model"], "model_type": "llama"}
    assert find_family(other) is family_of(other) and family_of(other).name == "deepseek_v2"
    assert family_of({"architectures": ["Unknown"], "model_type": "mistral"}).name == "llama"
    with pytest.raises(ConfigError, match=r"architectures \['Unknown'\] \(model_type 'mistral'\) is not served"):
        architecture_of({"architectures": ["Unknown"], "model_type": "mistral"})


def test_what_is_of_no_family():
    assert find_family({"model_type": "gpt2"}) is find_family(object()) is None
    with pytest.raises(ConfigError, match=r"dict has model_type 'gpt2'; it must be one of deepseek_v2, .*, mistral"):
        family_of({"model_type": "gpt2"})
    with pytest.raises(ConfigError, match="object has model_type None; it must be one of"):
        family_of(object())
    vision = tiny_vl2().config.vision_config
    with pytest.raises(ConfigError, match="VisionEncoderConfig has model_type 'vision'"):
        family_of(vision)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, 'the name "llama" belongs to one of modelwright\'s own families'),
        ({"name": "mine"}, 'architecture "LlamaForCausalLM" belongs to the family "llama" already'),
        (
            {"causal": "Other"},
            r'causal \("Other"\) must be one of the architectures \(LlamaModel, Ll.*\)',
        ),
    ],
)
def test_a_record_that_would_take_anothers_place_is_refused(changes, message):
    before = families()
    with pytest.raises(ConfigError, match=message):
        register_family(replace(family_of({"model_type": "llama"}), **changes))
    assert families() == before


def test_a_family_is_registered_again_and_forgotten():
    mine = replace(family_of({"model_type": "llama"}), name="mine", architectures={"M": "m:M"}, causal="M")
    try:
        for kinds in (("mine",), ("mine", "ours")):
            register_family(replace(mine, model_types=kinds))
            assert families()[-1].model_types == kinds and len(families()) == len(BUILT_IN) + 1
        assert architecture_of({"model_type": "ours"})[1] == "M"
    finally:
        forget_family("mine")
    assert len(families()) == len(BUILT_IN)
    forget_family("mine")


def test_dialects_by_name():
    mindformers = dialect_called("mindformers")
    assert mindformers is not None and mindformers.title == "MindFormers"
    asked = [name for name in vars(TensorDialect) if not name.startswith("_")]
    assert len(asked) > 9 and all(hasattr(mindformers, name) for name in asked)
    assert dialect_called("hf") is dialect_called(None) is None
    with pytest.raises(ConfigError, match="to must be one of hf, mindformers, gguf; got 'onnx'"):
        dialect_called("onnx")
