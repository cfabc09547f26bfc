"""Every parameter of every family and dialect belongs to one part."""

import re

import pytest

from modelwright.configs.run import TunePart
from modelwright.errors import ConfigError
from modelwright.families.deepseek_v2.model import DeepseekV2ForSequenceClassification
from modelwright.families.imagegpt.model import ImageGPTForImageClassification
from modelwright.families.llama.model import LlamaForSequenceClassification, LlamaModel
from modelwright.training.tuning import parts_of, settle
from tests.fakes import DENSE, MOE, VARIANTS, tiny_v2, tiny_vl2
from tests.imagegpts import tiny_imagegpt
from tests.llamas import EXPERTS, HUGGING_FACE, tiny_llama

SHARED = EXPERTS | {"shared_expert_num": 1, "use_shared_expert_gating": True}
MODELS = {
    **{f"v2 {name}": lambda base=base: tiny_v2(base=base) for name, base in VARIANTS.items()},
    "v2 without gates": lambda: tiny_v2(base=MOE | {"gated_mlp": False}),
    "v2 with biases": lambda: tiny_v2(base=MOE | {"attention_bias": True}),
    "v2 tied": lambda: tiny_v2(base=DENSE | {"tie_word_embeddings": True}),
    "v2 classifier": lambda: tiny_v2(DeepseekV2ForSequenceClassification, base=MOE),
    "vl2": tiny_vl2,
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "llama tied": lambda: tiny_llama(base=HUGGING_FACE, tie_word_embeddings=True),
    "llama decoder": lambda: tiny_llama(LlamaModel, base=HUGGING_FACE),
    "llama classifier": lambda: tiny_llama(LlamaForSequenceClassification, base=HUGGING_FACE),
    "mindformers": tiny_llama,
    "mindformers fused": lambda: tiny_llama(qkv_concat=True, qkv_has_bias=True),
    "mindformers experts": lambda: tiny_llama(moe_config=SHARED),
    "imagegpt": tiny_imagegpt,
    "imagegpt untied": lambda: tiny_imagegpt(tie_word_embeddings=False),
    "imagegpt classifier": lambda: tiny_imagegpt(ImageGPTForImageClassification),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_belongs_to_one_part(name):
    model = MODELS[name]()
    parts = parts_of(model)
    named = [name for names in parts.values() for name in names]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())
    norms = {each for each in named if re.search(r"(ln_\w+|norm)\.weight$", each) and not each.startswith("vision.")}
    assert set(parts["norms"]) == norms
    if "tied" in name and "untied" not in name:
        assert "head" not in parts
    if name == "vl2":
        assert set(parts) >= {"vision", "projector", "marks"} and "language.lm_head.weight" in parts["head"]


def test_parts_freeze_and_train():
    model = tiny_v2(base=MOE)
    tuned = settle(model, TunePart(freeze=("attention", r"layers\.1\.mlp\.experts")))
    assert not tuned.trains("attention") and not tuned.trains("experts") and tuned.trains("shared")
    assert not model.model.layers[0].self_attn.o_proj.weight.requires_grad
    assert set(tuned.parameters) == {name for name, each in model.named_parameters() if each.requires_grad}
    rows = {row.part: row for row in tuned.table}
    assert rows["attention"].trainable == 0 < rows["attention"].total
    tuned = settle(model, TunePart(train=("attention",), rates={"attention": 1e-4}))
    assert [group.part for group in tuned.groups] == ["attention"] and tuned.groups[0].rate == 1e-4
    assert len(settle(model).groups) == len(parts_of(model))


def test_pictures_are_frozen_unless_it_is_said_otherwise():
    model = tiny_vl2()
    assert settle(model).trains("vision")
    assert not settle(model, TunePart(rates={"projector": 1e-5})).trains("vision")
    assert settle(model, TunePart(freeze=("projector",))).trains("vision")
    assert settle(model, TunePart(train=("vision",))).trains("vision")


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        (TunePart(freeze=("atention",)), "did you mean attention"),
        (TunePart(train=("vision",)), "its parts are embedding, attention"),
        (TunePart(freeze=("(",)), "no regular expression"),
        (TunePart(rates={"expert": 1.0}), "did you mean experts"),
        (TunePart(freeze=(".",)), "nothing would train"),
        (TunePart(freeze=(r"\.experts\.",), rates={"experts": 1.0}), "nothing of that part trains"),
    ],
)
def test_what_cannot_be_is_refused(tune, said):
    with pytest.raises(ConfigError, match=said):
        settle(tiny_v2(base=MOE), tune)
