"""Which class serves which config, and what transformers' Auto classes know once told."""

import pytest
import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
)
from transformers import DeepseekV2Config as TheirConfig
from transformers import ImageGPTConfig as TheirImageGPTConfig

from modelwright.errors import ConfigError
from modelwright.families import families, model_class
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.model import (
    DeepseekV2ForCausalLM,
    DeepseekV2ForSequenceClassification,
    DeepseekV2Model,
)
from modelwright.families.deepseek_vl2.config import DeepseekVLV2Config
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from modelwright.families.imagegpt.config import ImageGPTConfig
from modelwright.families.imagegpt.model import (
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTModel,
)
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from modelwright.hf.registry import register
from tests.fakes import MOE, tiny_vl2, tokens
from tests.imagegpts import TINY
from tests.llamas import HUGGING_FACE, MINDFORMERS, tiny_llama

SMALL = {
    DeepseekV2Config: lambda: DeepseekV2Config(**MOE),
    LlamaConfig: lambda: LlamaConfig(**HUGGING_FACE),
    ImageGPTConfig: lambda: ImageGPTConfig(**TINY),
}


@pytest.mark.parametrize(
    ("config", "cls"),
    [
        ({"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2"}, DeepseekV2ForCausalLM),
        ({"architectures": ["DeepseekV2Model"]}, DeepseekV2Model),
        ({"architectures": ["Other", "DeepseekV2ForSequenceClassification"]}, DeepseekV2ForSequenceClassification),
        ({"architectures": None, "model_type": "deepseek_v2"}, DeepseekV2ForCausalLM),
        ({"architectures": ["DeepseekVLV2ForCausalLM"], "model_type": "deepseek_vl_v2"}, DeepseekVLV2ForCausalLM),
        ({"model_type": "deepseek_vl_v2"}, DeepseekVLV2ForCausalLM),
        (
            {"architectures": ["ImageGPTForCausalImageModeling"], "model_type": "imagegpt"},
            ImageGPTForCausalImageModeling,
        ),
        ({"architectures": ["ImageGPTForImageClassification"]}, ImageGPTForImageClassification),
        ({"architectures": ["ImageGPTModel"]}, ImageGPTModel),
        ({"model_type": "imagegpt"}, ImageGPTForCausalImageModeling),
        ({"architectures": ["LlamaModel"], "model_type": "llama"}, LlamaModel),
        ({"architectures": ["LlamaForSequenceClassification"]}, LlamaForSequenceClassification),
        ({"model_type": "llama"}, LlamaForCausalLM),
        ({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, LlamaForCausalLM),
    ],
)
def test_architectures_then_model_type(config, cls):
    assert model_class(config) is cls


OURS = ", ".join(name for family in families() for name in family.architectures)
TYPES = "deepseek_v2, deepseek_vl_v2, imagegpt, llama, mistral, qwen2"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architectures": ["DeepseekOCRForCausalLM"], "model_type": "deepseek_vl_v2"},
            "architectures ['DeepseekOCRForCausalLM'] (model_type 'deepseek_vl_v2') is not served; we have " + OURS,
        ),
        ({"model_type": "qwen3"}, f"model_type 'qwen3' is not served; we have {TYPES}"),
        ({}, f"model_type None is not served; we have {TYPES}"),
        ({"architectures": "DeepseekV2Model"}, "architectures must be a list of names, not 'DeepseekV2Model'"),
        ({"architectures": [7]}, "architectures must be a list of names, not [7]"),
    ],
)
def test_what_is_not_ours_is_refused_with_what_is(config, message):
    with pytest.raises(ConfigError) as caught:
        model_class(config)
    assert str(caught.value) == message


def test_registering_twice_changes_nothing_and_shadows_nothing():
    register()
    register()
    assert CONFIG_MAPPING["deepseek_vl_v2"] is DeepseekVLV2Config
    assert CONFIG_MAPPING["deepseek_v2"] is TheirConfig
    assert CONFIG_MAPPING["imagegpt"] is TheirImageGPTConfig
    config = tiny_vl2().config
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        assert isinstance(auto.from_config(config), DeepseekVLV2ForCausalLM)


AUTO = {
    AutoModel: [DeepseekV2Model, LlamaModel, ImageGPTModel],
    AutoModelForCausalLM: [DeepseekV2ForCausalLM, LlamaForCausalLM],
    AutoModelForSequenceClassification: [DeepseekV2ForSequenceClassification, LlamaForSequenceClassification],
    AutoModelForImageClassification: [ImageGPTForImageClassification],
}


@pytest.mark.parametrize(("auto", "cls"), [(auto, cls) for auto in AUTO for cls in AUTO[auto]])
def test_of_a_config_of_ours_the_auto_classes_make_a_model_of_ours(auto, cls):
    register()
    config = SMALL[cls.config_class]()
    assert type(auto.from_config(config)) is cls
    theirs = getattr(transformers, type(config).__name__)()
    assert auto._model_mapping[type(theirs)] is getattr(transformers, cls.__name__)


def test_an_auto_class_reads_a_folder_by_a_config_of_ours_that_is_given(tmp_path):
    register()
    model = tiny_llama(base=MINDFORMERS)
    model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, config=model.config)
    assert type(read) is LlamaForCausalLM
    assert torch.equal(read(tokens(1, 5)).logits, model(tokens(1, 5)).logits)


def test_a_transformers_that_has_the_family_is_left_alone(monkeypatch):
    class Theirs(DeepseekVLV2Config):
        """Stands for a class of a later transformers."""

    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "deepseek_vl_v2", Theirs)
    register()
    assert CONFIG_MAPPING["deepseek_vl_v2"] is Theirs


def test_the_auto_config_reads_ours(tmp_path):
    register()
    config = tiny_vl2().config
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path) == config
