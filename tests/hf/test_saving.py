"""save_pretrained and load_state_dict: official names on disk, one stack in memory, and nothing lost between."""

import json
from collections import ChainMap

import peft
import pytest
import torch
import transformers
from huggingface_hub import HfApi
from safetensors.torch import load, load_file
from transformers import GenerationConfig

from modelwright.checkpoints import shards
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families.deepseek_v2.model import DeepseekV2ForCausalLM, DeepseekV2ForSequenceClassification
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from modelwright.hf import pretrained
from tests.fakes import DENSE, MHA, MOE, VARIANTS, official_weights, tiny_v2, tiny_vl2, tokens
from tests.imagegpts import tiny_imagegpt
from tests.llamas import HUGGING_FACE, tiny_llama

FUSED = MHA | {"qkv_concat": True, "attention_bias": True}
PLAIN = MOE | {"gated_mlp": False}


def equal(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("base", [*VARIANTS.values(), FUSED, PLAIN], ids=[*VARIANTS, "fused", "plain"])
def test_what_is_saved_loads_equal(base, tmp_path):
    model = tiny_v2(base=base)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = DeepseekV2ForCausalLM.from_pretrained(tmp_path)
    assert equal(loaded, model)
    assert torch.equal(loaded(tokens(1, 5)).logits, model(tokens(1, 5)).logits)


def test_names_on_disk_are_the_official_ones(tmp_path):
    model = tiny_v2()
    model.save_pretrained(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    experts = {
        f"model.layers.1.mlp.experts.{e}.{part}_proj.weight" for e in range(8) for part in ("gate", "up", "down")
    }
    assert experts == {name for name in found if ".experts." in name}
    stack = model.model.layers[1].mlp.experts
    assert torch.equal(found["model.layers.1.mlp.experts.5.gate_proj.weight"], stack.gate_up_proj[5, :16])
    assert torch.equal(found["model.layers.1.mlp.experts.5.up_proj.weight"], stack.gate_up_proj[5, 16:])
    assert torch.equal(found["model.layers.1.mlp.experts.5.down_proj.weight"], stack.down_proj[5])
    assert {name for name in found if ".layers.0.mlp." in name} == {
        f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")
    }


def test_a_fused_projection_is_saved_as_three_and_read_from_three(tmp_path):
    apart = tiny_v2(base=FUSED | {"qkv_concat": False})
    apart.save_pretrained(tmp_path / "apart")
    fused = DeepseekV2ForCausalLM.from_pretrained(tmp_path / "apart", qkv_concat=True)
    assert fused.model.layers[0].self_attn.qkv_proj.weight.shape == (32 + 16 + 16, 32)
    torch.testing.assert_close(fused(tokens(2, 7)).logits, apart(tokens(2, 7)).logits)
    fused.save_pretrained(tmp_path / "again")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("apart", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("make", [tiny_v2, lambda **fields: tiny_vl2(language=fields)], ids=["text", "pictures"])
def test_a_tied_head_is_saved_once(make, tmp_path):
    model = make(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if name.endswith("lm_head.weight")]
    assert equal(type(model).from_pretrained(tmp_path), model)


def test_the_config_says_what_was_saved(tmp_path):
    model = tiny_vl2().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["DeepseekVLV2ForCausalLM"], "bfloat16")
    assert model.config.architectures is None  # the model's own config is not changed
    loaded = DeepseekVLV2ForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert equal(loaded, model)


def test_a_generation_config_goes_along(tmp_path):
    model = tiny_v2()
    model.generation_config.eos_token_id = [1, 9]
    model.save_pretrained(tmp_path)
    assert DeepseekV2ForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == [1, 9]


@pytest.mark.parametrize("size", ["5GB", "40KB"])
def test_the_folder_a_model_came_from_may_be_overwritten(size, tmp_path):
    tiny_v2().save_pretrained(tmp_path, max_shard_size="40KB")
    model = DeepseekV2ForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, max_shard_size=size)
    for state in (model.state_dict(), DeepseekV2ForCausalLM.from_pretrained(tmp_path).state_dict()):
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_only_the_main_process_writes(tmp_path):
    tiny_v2().save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("names", ["in memory", "official"])
def test_other_weights_than_the_models_own_can_be_saved(names, tmp_path):
    model, other = tiny_v2(), tiny_v2(seed=1)
    state = other.state_dict() if names == "in memory" else official_weights(other)
    model.save_pretrained(tmp_path, state_dict=state)
    assert equal(DeepseekV2ForCausalLM.from_pretrained(tmp_path), other)


def test_weights_that_are_not_all_there_are_not_saved(tmp_path):
    model = tiny_v2()
    state = model.state_dict()
    del state["model.layers.1.mlp.experts.down_proj"]
    match = r"the weights to save lack model.layers.1.mlp.experts.0.down_proj.weight$"
    with pytest.raises(CheckpointError, match=match):
        model.save_pretrained(tmp_path, state_dict=state)


def test_official_names_load_into_a_built_model(tmp_path):
    model, other = tiny_v2(), tiny_v2(seed=1)
    result = model.load_state_dict(official_weights(other))
    assert not result.missing_keys and not result.unexpected_keys
    assert equal(model, other)
    model.save_pretrained(tmp_path)
    assert equal(DeepseekV2ForCausalLM.from_pretrained(tmp_path), other)


def test_official_names_go_into_stacks_without_a_copy_of_them():
    model, other = tiny_v2(), tiny_v2(seed=1)
    weights = official_weights(other)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as measured:
        model.load_state_dict(weights)
    taken = sum(max(event.self_cpu_memory_usage, 0) for event in measured.events())
    assert taken < weights["model.layers.1.mlp.experts.0.down_proj.weight"].nbytes
    assert equal(model, other)


def test_names_in_memory_load_too():
    model, other = tiny_v2(), tiny_v2(seed=1)
    model.load_state_dict(other.state_dict())
    assert equal(model, other)


def test_official_names_can_be_assigned_to_a_model_without_memory():
    other = tiny_v2(seed=1)
    with torch.device("meta"):
        model = DeepseekV2ForCausalLM(other.config)
    model.load_state_dict(official_weights(other), assign=True)
    assert equal(model, other)


def test_shards_load_one_after_another_when_not_strict():
    model, other = tiny_v2(), tiny_v2(seed=1)
    weights = official_weights(other)
    names = sorted(weights)
    for part in (names[::2], names[1::2]):
        model.load_state_dict({name: weights[name] for name in part}, strict=False)
    assert equal(model, other)


def test_a_part_that_is_missing_is_named_when_strict():
    model = tiny_v2()
    weights = official_weights(model)
    del weights["model.layers.1.mlp.experts.7.up_proj.weight"]
    match = r"the state dict does not fit DeepseekV2ForCausalLM: missing model.layers.1.mlp.experts.7.up_proj.weight$"
    with pytest.raises(CheckpointError, match=match):
        model.load_state_dict(weights)


@pytest.mark.parametrize("assign", [False, True])
def test_a_part_of_a_narrower_type_rounds_no_other(assign):
    model = tiny_v2()
    before = {name: tensor.clone() for name, tensor in official_weights(model).items()}
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    given = torch.randn(before[name].shape).bfloat16()
    model.load_state_dict({name: given}, strict=False, assign=assign)
    after = official_weights(model)
    assert torch.equal(after.pop(name), given.float())
    assert all(torch.equal(after[other], before[other]) for other in after)
    model.load_state_dict({key: tensor.bfloat16() for key, tensor in before.items()}, assign=assign)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16 if assign else torch.float32}


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_a_fused_projection_of_several_key_heads_is_read_in_any_type(stored, wanted, tmp_path):
    model = tiny_llama(base=HUGGING_FACE, qkv_has_bias=True, attn_proj_has_bias=True)
    model.config.dtype = stored
    model.to(getattr(torch, stored)).save_pretrained(tmp_path)
    fused = type(model).from_pretrained(tmp_path, dtype=wanted, qkv_concat=True)
    apart = type(model).from_pretrained(tmp_path, dtype=wanted)
    assert fused.dtype == getattr(torch, wanted)
    found, expected = (official_weights(each) for each in (fused, apart))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_part_of_another_shape_is_named():
    model = tiny_v2()
    weights = official_weights(model) | {"model.layers.1.mlp.experts.7.up_proj.weight": torch.ones(32)}
    match = r"experts.7.up_proj.weight has shape \[32\] in the state dict, and the config asks for \[16, 32\]"
    with pytest.raises(CheckpointError, match=match):
        model.load_state_dict(weights)


def test_merged_adapters_are_saved_in_the_official_layout(tmp_path):
    base = tiny_v2(base=DENSE)
    names = set(official_weights(base))
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_b_proj", "kv_b_proj", "o_proj"], r=2)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    expected = adapted(input_ids=tokens(1, 6)).logits
    adapted.merge_and_unload().save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == names
    loaded = DeepseekV2ForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(tokens(1, 6)).logits, expected, atol=1e-5, rtol=1e-5)


def test_adapters_of_transformers_are_saved_alone(tmp_path, monkeypatch):
    # transformers 5.24 asks for peft 0.22, which was not released with it; it works with the releases before.
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", peft.__version__)
    model = tiny_v2(base=DENSE)
    model.add_adapter(peft.LoraConfig(target_modules=["o_proj"], r=2))
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["adapter_model.safetensors"]
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved and all("o_proj.lora_" in name for name in saved)
    held = {name.replace(".default.", "."): tensor for name, tensor in model.state_dict().items() if "lora_" in name}
    assert {name.removeprefix("base_model.model."): tensor.tolist() for name, tensor in saved.items()} == {
        name: tensor.tolist() for name, tensor in held.items()
    }


def test_a_classifier_round_trips(tmp_path):
    model = tiny_v2(DeepseekV2ForSequenceClassification, num_labels=3)
    model.save_pretrained(tmp_path)
    assert equal(DeepseekV2ForSequenceClassification.from_pretrained(tmp_path), model)


VICUNA = {"bos_token_id": 0, "eos_token_id": 1, "max_length": 4096, "temperature": 0.9, "top_p": 0.6}


def test_generation_settings_that_nothing_samples_by_are_saved_as_they_were_read(tmp_path):
    tiny_v2().save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "generation_config.json").write_text(json.dumps(VICUNA))
    model = DeepseekV2ForCausalLM.from_pretrained(tmp_path / "a")
    model.generation_config.top_k = 3  # changed since, which transformers' own saving takes for a reason to refuse
    model.save_pretrained(tmp_path / "b")
    written = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert {key: value for key, value in written.items() if key != "transformers_version"} == VICUNA | {"top_k": 3}
    assert GenerationConfig.from_pretrained(tmp_path / "b") == model.generation_config
    assert equal(DeepseekV2ForCausalLM.from_pretrained(tmp_path / "b"), model)


def fails(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["weights", "config", "generation"])
def test_what_cannot_be_written_leaves_nothing(step, tmp_path, monkeypatch):
    model = tiny_v2()
    places = {
        "weights": (shards, "save_file"),
        "config": (type(model.config), "to_json_file"),
        "generation": (pretrained, "_write_generation"),
    }
    monkeypatch.setattr(*places[step], fails)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left on device$"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("size", ["no size", "40XB"])
def test_bad_arguments_leave_nothing(size, tmp_path):
    model = tiny_v2()
    with pytest.raises(ConfigError, match="max_shard_size must be bytes"):
        model.save_pretrained(tmp_path / "new", max_shard_size=size)
    model.config.temperature = 0.5
    with pytest.raises(ConfigError, match="Some generation parameters are set in the model config"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file cannot be written"):
        tiny_v2().save_pretrained(tmp_path / "file")


def test_a_full_disk_keeps_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    model = tiny_v2()
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr(shards, "save_file", fails)
    with pytest.raises(CheckpointError, match=r"cannot be written: No space left on device$"):
        tiny_v2(seed=1).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before and not list(tmp_path.glob("*.part"))


def test_weights_may_be_read_by_whoever_may_read_the_config(tmp_path):
    tiny_v2().save_pretrained(tmp_path, max_shard_size="40KB")
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) == 1


RESIZED = {
    "llama": lambda: tiny_llama(base=HUGGING_FACE),
    "llama, tied": lambda: tiny_llama(base=HUGGING_FACE, tie_word_embeddings=True),
    "deepseek_v2": tiny_v2,
    "deepseek_vl2": tiny_vl2,
    "imagegpt": tiny_imagegpt,
}


@pytest.mark.parametrize("change", [3, -3])
@pytest.mark.parametrize("make", RESIZED.values(), ids=RESIZED)
def test_resized_embeddings_are_scored_by_a_head_of_their_size_and_load(make, change, tmp_path):
    """Scores of tokens that were there before and stay are the same; ImageGPT's start, the last, is never scored."""
    model, ids = make(), torch.arange(2, 8)[None]
    before, tokens_before = model(ids).logits, model.get_input_embeddings().num_embeddings
    unscored = tokens_before - before.shape[-1]
    model.resize_token_embeddings(tokens_before + change, mean_resizing=False)
    after = model(ids).logits
    assert after.shape[-1] == tokens_before + change - unscored
    kept = min(before.shape[-1], after.shape[-1])
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(ids).logits, after)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_hub_gets_the_files_that_are_saved_under_the_names_that_transformers_sends(variant, hub, tmp_path):
    repositories, commits = hub
    ours = tiny_llama(base=HUGGING_FACE)
    ours.save_pretrained(tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    for model, name in ((theirs, "theirs"), (ours, "ours")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "earlier.txt").write_text("not of this model")
        state = {key: tensor + 1 for key, tensor in model.state_dict().items()}
        told = {"repo_id": "a/b", "token": "t", "private": True, "safe_serialization": True} if name == "ours" else {}
        told |= {"variant": variant, "state_dict": state, "max_shard_size": "20KB"}
        model.save_pretrained(folder, push_to_hub=True, **told)
    of_theirs, of_ours = commits
    assert of_ours.keys() == of_theirs.keys()
    assert "earlier.txt" not in of_ours
    assert all(content == (tmp_path / "ours" / name).read_bytes() for name, content in of_ours.items())
    sent, wanted = (
        ChainMap(*(load(content) for name, content in files.items() if name.endswith(".safetensors")))
        for files in commits
    )
    assert sent.keys() == wanted.keys()
    assert all(torch.equal(sent[name], wanted[name]) for name in sent)
    assert repositories == [("theirs", {}), ("a/b", {"token": "t", "private": True})]


def test_a_hub_that_does_not_answer_leaves_the_folder_and_says_so(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(HfApi, "create_repo", offline)
    with pytest.raises(CheckpointError, match=r"new is written, and the hub did not take it as a/b: no network"):
        tiny_v2().save_pretrained(tmp_path / "new", push_to_hub=True, repo_id="a/b")
    assert equal(DeepseekV2ForCausalLM.from_pretrained(tmp_path / "new"), tiny_v2())
