"""What a config.json may call otherwise than we do is read as transformers reads it."""

import json
import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file

from modelwright.checkpoints.convert import convert
from modelwright.configs.rope import _tell_idle
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.model import ImageGPTForCausalImageModeling
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM
from tests.fakes import MOE, tiny_v2, tokens
from tests.imagegpts import colours, tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
MODELS = {
    LlamaForCausalLM: lambda: tiny_llama(base=HUGGING_FACE),
    DeepseekV2ForCausalLM: lambda: tiny_v2(base=MOE | {"num_key_value_heads": 4}),
    ImageGPTForCausalImageModeling: tiny_imagegpt,
}


def folder_with(folder, cls, **values):
    MODELS[cls]().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | values
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("name", ["half", "float", "double", "bfloat16"])
@pytest.mark.parametrize("cls", MODELS)
def test_a_type_may_have_torchs_other_name(cls, name, key, tmp_path):
    folder = folder_with(tmp_path, cls, **{"dtype": None, key: name})
    theirs = getattr(transformers, cls.__name__).from_pretrained(folder)
    ours = cls.from_pretrained(folder)
    assert ours.dtype == ours.config.dtype == theirs.dtype == getattr(torch, name)
    assert cls.from_pretrained(folder, dtype="float").dtype == torch.float32


@pytest.mark.parametrize("make", [LlamaConfig, DeepseekV2Config, DeepseekVLV2Config, ImageGPTConfig])
def test_a_saved_config_has_the_usual_name_of_a_type(make, tmp_path):
    make(dtype="half").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("asked", ["half", "torch.float16", torch.float16])
def test_convert_takes_the_same_names_of_types(asked, tmp_path):
    tiny_llama(base=HUGGING_FACE).save_pretrained(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "narrow", dtype=asked)
    assert {tensor.dtype for tensor in load_file(tmp_path / "narrow" / "model.safetensors").values()} == {torch.float16}
    assert LlamaForCausalLM.from_pretrained(tmp_path / "narrow").config.dtype == torch.float16


@torch.no_grad()
@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (LlamaForCausalLM, {"hidden_act": "swish"}),
        (DeepseekV2ForCausalLM, {"hidden_act": "swish"}),
        (ImageGPTForCausalImageModeling, {"activation_function": "swish"}),
        (LlamaForCausalLM, {"rope_parameters": None, "rope_scaling": YARN | {"finetuned": True}}),
        (DeepseekV2ForCausalLM, {"rope_parameters": None, "rope_scaling": YARN | {"finetuned": True}}),
        (LlamaForCausalLM, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "note": "x"}}),
        (LlamaForCausalLM, {"rope_parameters": None, "rope_scaling": YARN | {"type": "linear"}}),
        (LlamaForCausalLM, {"rope_parameters": None, "rope_scaling": YARN | {"type": "dynamic"}}),
        (DeepseekV2ForCausalLM, {"rope_parameters": None, "rope_scaling": YARN | {"type": "linear"}}),
        (DeepseekV2ForCausalLM, {"rope_parameters": None, "rope_scaling": YARN | {"type": "dynamic"}}),
    ],
    ids=str,
)
def test_other_words_give_transformers_logits(cls, values, tmp_path):
    folder = folder_with(tmp_path / "model", cls, **values)
    theirs = getattr(transformers, cls.__name__).from_pretrained(folder)
    ids = colours(2, 20) if cls is ImageGPTForCausalImageModeling else tokens(2, 40)
    wanted = theirs(ids).logits
    ours = cls.from_pretrained(folder)
    torch.testing.assert_close(ours(ids).logits, wanted, atol=1e-5, rtol=1e-5)
    ours.save_pretrained(tmp_path / "again")
    again = getattr(transformers, cls.__name__).from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again(ids).logits, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [LlamaConfig, DeepseekV2Config])
def test_a_key_that_no_rotation_reads_is_told_of(make, caplog):
    _tell_idle.cache_clear()
    with caplog.at_level(logging.WARNING):
        config = make(rope_scaling=YARN | {"finetuned": True})
    assert [record.getMessage() for record in caplog.records] == [
        'a rotation of type "yarn" does not read the key "finetuned", which is without effect'
    ]
    assert config.rope_parameters["factor"] == 4.0


@pytest.mark.parametrize("make", [LlamaConfig, DeepseekV2Config])
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"beta_fats": 1}, 'unknown key "beta_fats" in rope_scaling; did you mean "beta_fast"'),
        ({"long_factor": [1]}, "takes"),
    ],
)
def test_a_key_that_means_something_is_not_passed_over(make, extra, message):
    with pytest.raises(ConfigError, match=message):
        make(rope_scaling=YARN | extra)


def test_another_activation_of_a_llama_is_refused_still():
    with pytest.raises(ConfigError, match='hidden_act must be "silu" in a Llama, got "gelu"'):
        LlamaConfig(hidden_act="gelu")
