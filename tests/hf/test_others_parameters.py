"""Parameters that a family's checkpoint does not hold: of adapters, of a caller's own head, and of another shape."""

import json
import shutil
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from modelwright.errors import CheckpointError
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM, DeepseekV2Model, DeepseekV2PreTrainedModel
from modelwright.families.llama.model import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from tests.fakes import MOE, official_weights, tiny_v2, tokens
from tests.llamas import HUGGING_FACE, pair, tiny_llama

MODELS = {"llama": lambda: tiny_llama(base=HUGGING_FACE), "deepseek_v2": tiny_v2}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request):
    return request.param()


def adapted(model, folder, name="default"):
    """The model saved in ``folder/base``, and peft's model upon it, whose adapter is in ``folder/adapter``."""
    model.save_pretrained(folder / "base")
    model.name_or_path = str(folder / "base")
    plan = peft.LoraConfig(target_modules=["o_proj", "down_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, plan, adapter_name=name).eval()
    wrapped.save_pretrained(folder / "adapter")
    return wrapped


@torch.no_grad()
def test_a_folder_with_an_adapter_gives_the_base_with_it(model, tmp_path):
    cls, ids = type(model), tokens(1, 7)
    wanted = adapted(model, tmp_path)(ids).logits
    found, info = cls.from_pretrained(tmp_path / "adapter", output_loading_info=True)
    assert torch.equal(found(ids).logits, wanted)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    named = cls.from_pretrained(tmp_path / "adapter", adapter_name="mine", dtype=torch.float64)
    assert "mine" in named.peft_config and named.dtype == torch.float64
    shutil.copytree(tmp_path / "base", tmp_path / "both")
    shutil.copytree(tmp_path / "adapter", tmp_path / "both", dirs_exist_ok=True)
    (tmp_path / "base").rename(tmp_path / "gone")
    assert torch.equal(cls.from_pretrained(tmp_path / "both")(ids).logits, wanted)
    with pytest.raises(CheckpointError, match="base is not a folder"):
        cls.from_pretrained(tmp_path / "adapter")


@torch.no_grad()
def test_auto_classes_and_transformers_agree(tmp_path):
    ours, _ = pair()
    wanted = adapted(ours, tmp_path)(tokens(1, 7)).logits
    found = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "adapter")(tokens(1, 7)).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    kwargs = {"_adapter_model_path": str(tmp_path / "adapter")}  # as the Auto classes hand it on
    through = LlamaForCausalLM.from_pretrained(tmp_path / "base", adapter_kwargs=kwargs)
    assert torch.equal(through(tokens(1, 7)).logits, wanted)


def test_an_adapter_of_nothing_is_refused(model, tmp_path):
    adapted(model, tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match=r"adapter_config.json names no base_model_name_or_path"):
        type(model).from_pretrained(tmp_path / "adapter")


class LlamaReward(LlamaPreTrainedModel):
    """A decoder with a head of a caller's."""

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.reward = nn.Linear(config.hidden_size, 1)
        self.post_init()


class LlamaWithValue(LlamaForCausalLM):
    """A language model with another head beside its own."""

    def __init__(self, config):
        super().__init__(config)
        self.value = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()


class V2Reward(DeepseekV2PreTrainedModel):
    """As above, of another family."""

    def __init__(self, config):
        super().__init__(config)
        self.model = DeepseekV2Model(config)
        self.reward = nn.Linear(config.hidden_size, 1)
        self.post_init()


class V2WithValue(DeepseekV2ForCausalLM):
    """As above, of another family."""

    def __init__(self, config):
        super().__init__(config)
        self.value = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()


DERIVED = {
    LlamaReward: ({"reward.weight", "reward.bias"}, {"lm_head.weight"}),
    LlamaWithValue: ({"value.weight"}, set()),
    V2Reward: ({"reward.weight", "reward.bias"}, {"lm_head.weight"}),
    V2WithValue: ({"value.weight"}, set()),
}


@pytest.mark.parametrize(("cls", "lists"), DERIVED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_head_of_a_callers_own_starts_afresh(cls, lists, tmp_path):
    model = tiny_v2() if issubclass(cls, DeepseekV2PreTrainedModel) else tiny_llama(base=HUGGING_FACE)
    model.save_pretrained(tmp_path / "base")
    found, info = cls.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert (info["missing_keys"], info["unexpected_keys"]) == lists
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)
    found.save_pretrained(tmp_path / "own")
    again, info = cls.from_pretrained(tmp_path / "own", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in found.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@pytest.mark.parametrize("cls", [LlamaReward, LlamaWithValue])
def test_what_is_the_familys_must_be_there(cls, tmp_path):
    model = tiny_llama(base=HUGGING_FACE)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "model.norm.weight"}
    model.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit Llama\w+: missing model.norm.weight$"):
        cls.from_pretrained(tmp_path)


def test_parameters_of_another_shape_start_afresh_where_that_is_asked_for(tmp_path):
    ours, theirs = pair()
    theirs.save_pretrained(tmp_path)
    how = {"vocab_size": 70, "output_loading_info": True, "ignore_mismatched_sizes": True}
    found, info = LlamaForCausalLM.from_pretrained(tmp_path, **how)
    _, wanted = transformers.LlamaForCausalLM.from_pretrained(tmp_path, **how)
    assert {name: set(listed) for name, listed in info.items() if name != "error_msgs"} == {
        name: {tuple(map(tuple_of, each)) if isinstance(each, tuple) else each for each in listed}
        for name, listed in wanted.items()
        if name != "error_msgs"
    }
    assert found.lm_head.weight.shape == (70, 32) and torch.isfinite(found.lm_head.weight).all()
    assert torch.equal(found.model.norm.weight, ours.model.norm.weight)
    with pytest.raises(CheckpointError, match=r"has shape \[64, 32\]"):
        LlamaForCausalLM.from_pretrained(tmp_path, vocab_size=70)


def tuple_of(value):
    """A shape as a plain tuple, anything else as it is."""
    return tuple(value) if isinstance(value, torch.Size) else value


FEWER, MORE, WIDER = {"n_routed_experts": 6}, {"n_routed_experts": 9}, {"moe_intermediate_size": 24}


@pytest.mark.parametrize("fields", [FEWER, MORE, WIDER], ids=["fewer", "more", "wider"])
@pytest.mark.parametrize("source", ["folder", "state", "official state", "bare folder"])
def test_stacks_of_experts_start_afresh_where_those_of_transformers_do(source, fields, tmp_path):
    model = tiny_v2(num_key_value_heads=4)
    (model.model if source == "bare folder" else model).save_pretrained(tmp_path)
    where = None if "state" in source else tmp_path
    state = {"state": model.state_dict(), "official state": official_weights(model)}.get(source)
    cls, theirs = DeepseekV2ForCausalLM, transformers.DeepseekV2ForCausalLM
    if source == "bare folder":
        cls, theirs = DeepseekV2Model, transformers.DeepseekV2Model
    how: dict[str, Any] = {"config": type(model.config)(**model.config.to_dict() | fields)}
    how |= {"state_dict": state, "ignore_mismatched_sizes": True, "output_loading_info": True}
    found, info = cls.from_pretrained(where, **how)
    how["config"] = transformers.DeepseekV2Config(**MOE | fields)
    _, wanted = theirs.from_pretrained(where, **how)
    assert {name: set(listed) for name, listed in info.items()} == {
        name: {tuple(map(tuple_of, each)) if isinstance(each, tuple) else each for each in listed}
        for name, listed in wanted.items()
    }
    names = {name.removeprefix("model.") for name, *_ in info["mismatched_keys"]}
    assert "layers.1.mlp.experts.down_proj" in names
    before, after = model.model.state_dict(), found.base_model.state_dict()
    for name, tensor in after.items():
        assert 0.1 < tensor.std() < 0.3 if name in names else torch.equal(tensor, before[name]), name


def test_an_expert_that_is_there_in_part_is_missing_all_the_same(tmp_path):
    model = tiny_v2()
    model.config.save_pretrained(tmp_path)
    lacking = "model.layers.1.mlp.experts.2.up_proj.weight"
    weights = {name: tensor for name, tensor in official_weights(model).items() if name != lacking}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"does not fit DeepseekV2ForCausalLM: missing {lacking}$"):
        DeepseekV2ForCausalLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
