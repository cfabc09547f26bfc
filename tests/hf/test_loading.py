"""from_pretrained: what it reads, in which type, with which overrides, what it leaves aside and what it reports."""

import copy
import json
import logging

import peft
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

import modelwright
from modelwright.errors import CheckpointError, ConfigError
from modelwright.families.deepseek_v2.config import DeepseekV2Config
from modelwright.families.deepseek_v2.model import (
    DeepseekV2ForCausalLM,
    DeepseekV2ForSequenceClassification,
    DeepseekV2Model,
)
from modelwright.families.deepseek_vl2.model import DeepseekVLV2ForCausalLM
from modelwright.hf.registry import register
from tests.fakes import MOE, NOAUX, VARIANTS, official_weights, tiny_v2, tiny_vl2, tokens, vl2_inputs, write_checkpoint
from tests.llamas import HUGGING_FACE, tiny_llama


def config_dict(model):
    return json.loads(model.config.to_json_string())


def equal(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def model():
    return tiny_v2()


@pytest.fixture
def folder(model, tmp_path):
    return write_checkpoint(tmp_path / "model", config_dict(model), official_weights(model))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("base", VARIANTS.values(), ids=VARIANTS)
def test_every_tensor_arrives(base, shards, tmp_path):
    model = tiny_v2(base=base)
    folder = write_checkpoint(tmp_path, config_dict(model), official_weights(model), shards)
    loaded = DeepseekV2ForCausalLM.from_pretrained(folder)
    assert equal(loaded, model)
    assert not loaded.training


def test_a_vision_language_checkpoint_loads(tmp_path):
    model = tiny_vl2()
    folder = write_checkpoint(tmp_path, config_dict(model), official_weights(model), shards=2)
    loaded = DeepseekVLV2ForCausalLM.from_pretrained(str(folder))
    assert equal(loaded, model)
    inputs = vl2_inputs([[(1, 1)]])
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("asked", "stated", "stored", "expected"),
    [
        ({}, None, torch.bfloat16, torch.bfloat16),
        ({}, "float32", torch.bfloat16, torch.float32),
        ({"dtype": "auto"}, "float16", torch.float32, torch.float16),
        ({"dtype": "bfloat16"}, None, torch.float32, torch.bfloat16),
        ({"dtype": torch.float16}, "float32", torch.float32, torch.float16),
        ({"torch_dtype": torch.bfloat16}, "float32", torch.float32, torch.bfloat16),
        ({"torch_dtype": "torch.float16"}, None, torch.float32, torch.float16),
    ],
)
def test_the_type_is_the_one_asked_for_then_the_configs_then_the_files(asked, stated, stored, expected, tmp_path):
    model = tiny_v2(base=NOAUX)
    weights = {name: tensor.to(stored) for name, tensor in official_weights(model).items()}
    config = {key: value for key, value in config_dict(model).items() if key != "dtype"}
    config |= {} if stated is None else {"torch_dtype": stated}
    loaded = DeepseekV2ForCausalLM.from_pretrained(write_checkpoint(tmp_path, config, weights), **asked)
    bias = loaded.model.layers[1].mlp.gate.e_score_correction_bias
    assert {p.dtype for p in loaded.parameters()} == {expected}
    assert bias.dtype == torch.float32
    assert loaded.config.dtype == expected


def test_only_a_model_with_steered_routers_keeps_a_part_in_fp32():
    """transformers is told of names that the model has, and of no others."""
    assert tiny_v2(base=NOAUX)._keep_in_fp32_modules_strict == {"e_score_correction_bias"}
    assert tiny_vl2(language=NOAUX)._keep_in_fp32_modules_strict == {"e_score_correction_bias"}
    for model in (tiny_v2(), tiny_vl2(), tiny_llama()):
        assert model._keep_in_fp32_modules_strict == set()


def test_a_nested_config_may_state_the_type(tmp_path):
    model = tiny_vl2()
    config = config_dict(model)
    config.pop("dtype", None)
    config["language_config"]["torch_dtype"] = "bfloat16"
    folder = write_checkpoint(tmp_path, config, official_weights(model))
    assert DeepseekVLV2ForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


@pytest.mark.parametrize("asked", ["int8", "bf16", torch.int64, torch.float8_e4m3fn, {"": "float32"}])
def test_a_type_that_is_none_is_refused(asked, folder):
    with pytest.raises(ConfigError, match=r"dtype must be auto or one of float64, float32, float16, bfloat16; got "):
        DeepseekV2ForCausalLM.from_pretrained(folder, dtype=asked)


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto", None])
def test_a_device_map_places_the_model(device_map, folder, model):
    assert equal(DeepseekV2ForCausalLM.from_pretrained(folder, device_map=device_map), model)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention_gives_the_same_logits(attention, folder, model):
    loaded = DeepseekV2ForCausalLM.from_pretrained(folder, attn_implementation=attention)
    assert loaded.config._attn_implementation == attention
    torch.testing.assert_close(loaded(tokens(1, 9)).logits, model(tokens(1, 9)).logits)


def test_fields_of_the_config_are_overridden(folder):
    loaded = DeepseekV2ForCausalLM.from_pretrained(folder, routed_scaling_factor=2.0, use_cache=False)
    assert loaded.config.routed_scaling_factor == loaded.model.layers[1].mlp.gate.scaling == 2.0
    assert loaded(tokens(1, 3)).past_key_values is None


def test_a_misspelt_override_is_refused(folder):
    with pytest.raises(ConfigError, match='unknown key "routed_scaling_facto"; did you mean "routed_scaling_factor"'):
        DeepseekV2ForCausalLM.from_pretrained(folder, routed_scaling_facto=2.0)


def test_the_config_may_be_an_object_or_a_path(folder, tmp_path):
    config = DeepseekV2Config(**MOE | {"routed_scaling_factor": 3.0})
    loaded = DeepseekV2ForCausalLM.from_pretrained(folder, config=config)
    assert loaded.config.routed_scaling_factor == 3.0
    assert config.dtype is None  # the one given is not changed
    config.save_pretrained(tmp_path / "other")
    for path in (tmp_path / "other", tmp_path / "other" / "config.json"):
        loaded = DeepseekV2ForCausalLM.from_pretrained(folder, config=path)
        assert loaded.config.routed_scaling_factor == 3.0


def test_where_a_model_was_read_from_is_noted(folder):
    loaded = DeepseekV2ForCausalLM.from_pretrained(folder, local_files_only=True)
    assert loaded.name_or_path == loaded.config.name_or_path == str(folder)


def test_the_loading_info_is_returned_when_asked_for(folder, model):
    loaded, info = DeepseekV2ForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert equal(loaded, model)
    assert info["missing_keys"] == info["unexpected_keys"] == set()


def test_the_generation_config_is_read(folder):
    GenerationConfig(temperature=0.25, do_sample=True, eos_token_id=[1, 7]).save_pretrained(folder)
    loaded = DeepseekV2ForCausalLM.from_pretrained(folder)
    assert (loaded.generation_config.temperature, loaded.generation_config.eos_token_id) == (0.25, [1, 7])


def test_a_damaged_generation_config_is_named(folder):
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config.json cannot be read as JSON: Expecting"):
        DeepseekV2ForCausalLM.from_pretrained(folder)


def test_progress_counts_the_bytes_read(folder, model, capsys):
    calls = []
    DeepseekV2ForCausalLM.from_pretrained(folder, progress=lambda *call: calls.append(call))
    weights = official_weights(model)
    assert [name for name, _, _ in calls] and {name for name, _, _ in calls} == set(weights)
    total = sum(tensor.nbytes for tensor in weights.values())
    assert calls[-1][1:] == (total, total)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert capsys.readouterr().err == ""  # transformers' bar stays away


def test_a_base_model_reads_the_decoder_of_a_causal_checkpoint(folder, model, caplog):
    with caplog.at_level(logging.WARNING, "modelwright"):
        loaded, info = DeepseekV2Model.from_pretrained(folder, output_loading_info=True)
    assert equal(loaded, model.model)
    assert info["unexpected_keys"] == {"lm_head.weight"}
    assert caplog.messages == ["the checkpoint's tensors lm_head.weight are not used by DeepseekV2Model"]


def test_a_classifier_starts_a_new_head_and_reports_it(folder, model):
    cls = DeepseekV2ForSequenceClassification
    loaded, info = cls.from_pretrained(folder, num_labels=3, output_loading_info=True)
    assert equal(loaded.model, model.model)
    assert info["missing_keys"] == {"score.weight"}
    assert loaded.score.weight.shape == (3, 32)
    assert 0 < loaded.score.weight.std() < 1


def test_a_head_of_another_size_is_refused_unless_it_may_start_afresh(tmp_path):
    cls = DeepseekV2ForSequenceClassification
    tiny_v2(cls, num_labels=3).save_pretrained(tmp_path)
    message = r"score.weight has shape \[3, 32\] in model.safetensors, and the config asks for \[5, 32\]"
    with pytest.raises(CheckpointError, match=message):
        cls.from_pretrained(tmp_path, num_labels=5)
    loaded = cls.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert loaded.score.weight.shape == (5, 32)


@pytest.mark.parametrize("given", [MOE, transformers.LlamaConfig()], ids=["values", "another model's"])
def test_a_config_that_is_none_of_the_models_is_refused(given, model, tmp_path):
    model.save_pretrained(tmp_path)
    message = rf"config must be a DeepseekV2Config, a folder or a file, got a {type(given).__name__}: DeepseekV2Config"
    with pytest.raises(ConfigError, match=message):
        DeepseekV2ForCausalLM.from_pretrained(tmp_path, config=given)
    with pytest.raises(ConfigError, match=message):
        DeepseekV2ForCausalLM.from_pretrained(None, config=given, state_dict=model.state_dict())


def test_a_causal_model_needs_its_head(model, tmp_path):
    model.model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit DeepseekV2ForCausalLM: missing lm_head.weight$"):
        DeepseekV2ForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("make", [tiny_v2, lambda **fields: tiny_vl2(language=fields)], ids=["text", "pictures"])
def test_a_tied_checkpoint_may_hold_its_head_or_not(make, with_head, tmp_path):
    model = make(tie_word_embeddings=True)
    weights = official_weights(model)
    if not with_head:
        del weights[next(name for name in weights if name.endswith("lm_head.weight"))]
    loaded = type(model).from_pretrained(write_checkpoint(tmp_path, config_dict(model), weights))
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert equal(loaded, model)


def test_tensors_of_the_hub_that_nobody_needs_are_left_aside(tmp_path, caplog):
    model = tiny_vl2()
    extra = {
        "language.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "vision.attn_pool.latent": torch.ones(1, 1, 16),
        "vision.attn_pool.kv.weight": torch.ones(32, 16),
    }
    folder = write_checkpoint(tmp_path, config_dict(model), official_weights(model) | extra)
    with caplog.at_level(logging.WARNING, "modelwright"):
        assert equal(DeepseekVLV2ForCausalLM.from_pretrained(folder), model)
    assert [f"the checkpoint's tensors {', '.join(sorted(extra))} are not used by DeepseekVLV2ForCausalLM"] == (
        caplog.messages
    )


def test_a_pooling_head_that_the_config_asks_for_is_refused_as_it_reads_no_patches(tmp_path):
    model = tiny_vl2()
    config = config_dict(model)
    config["vision_config"]["ignore_head"] = False
    folder = write_checkpoint(tmp_path, config, official_weights(model))
    rule = r'^vision_config.ignore_head \(False\) needs global_pool "" and num_classes 0, got "map" and 0: a head'
    with pytest.raises(ConfigError, match=rule):
        DeepseekVLV2ForCausalLM.from_pretrained(folder)


def test_a_tower_whose_head_pools_nothing_reads_pictures(tmp_path):
    model, inputs = tiny_vl2(), vl2_inputs([[(1, 1)]])
    config = config_dict(model)
    config["vision_config"] |= {"ignore_head": False, "global_pool": ""}
    folder = write_checkpoint(tmp_path, config, official_weights(model))
    loaded = DeepseekVLV2ForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_a_layer_too_many_is_unexpected(model, tmp_path):
    extra = {"model.layers.2.input_layernorm.weight": torch.ones(32)}  # as of a multi-token prediction head
    folder = write_checkpoint(tmp_path, config_dict(model), official_weights(model) | extra)
    with pytest.raises(CheckpointError, match=r"unexpected model.layers.2.input_layernorm.weight$"):
        DeepseekV2ForCausalLM.from_pretrained(folder)


def test_a_long_list_of_missing_tensors_is_cut(tmp_path):
    folder = write_checkpoint(tmp_path, config_dict(tiny_v2()), {"lm_head.weight": torch.ones(64, 32)})
    with pytest.raises(CheckpointError, match=r"missing (\S+, ){7}\S+ and 43 more$"):
        DeepseekV2ForCausalLM.from_pretrained(folder)


def test_transformers_auto_class_loads_it_once_registered(tmp_path):
    model = tiny_vl2()
    model.save_pretrained(tmp_path)
    register()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is DeepseekVLV2ForCausalLM
    assert equal(loaded, model)


@pytest.mark.parametrize("trust", [None, False, True])
def test_code_that_a_config_names_is_never_run(trust, tmp_path):
    model, canary = tiny_vl2(), tmp_path / "ran"
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    folder = write_checkpoint(tmp_path / "model", config_dict(model) | {"auto_map": auto_map}, official_weights(model))
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    arguments = {} if trust is None else {"trust_remote_code": trust}
    assert equal(DeepseekVLV2ForCausalLM.from_pretrained(folder, **arguments), model)
    assert not canary.exists()


def test_a_folder_and_a_state_dict_contradict_each_other(folder):
    with pytest.raises(CheckpointError, match="give a folder or a state_dict, and not both"):
        DeepseekV2ForCausalLM.from_pretrained(folder, state_dict={})


def written_by_transformers(kind, folder):
    """A class of transformers, and a model of it that was saved in a folder."""
    theirs = getattr(transformers, f"{kind}ForCausalLM")
    base = HUGGING_FACE if kind == "Llama" else {name: value for name, value in MOE.items() if name != "gated_mlp"}
    torch.manual_seed(0)
    model = theirs(theirs.config_class(**base | {"num_key_value_heads": base["num_attention_heads"]})).eval()
    model.save_pretrained(folder)
    return theirs, model


@pytest.mark.parametrize("kind", ["Llama", "DeepseekV2"])
def test_transformers_own_configs_are_taken(kind, tmp_path):
    """As `AutoConfig.from_pretrained` gives them, to `from_pretrained` and to `from_config`."""
    theirs, model = written_by_transformers(kind, tmp_path)
    ours, config = getattr(modelwright, f"{kind}ForCausalLM"), theirs.config_class.from_pretrained(tmp_path)
    ids = tokens(2, 7)
    loaded = ours.from_pretrained(tmp_path, config=config, state_dict=None)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
        made = ours.from_config(config)
        made.load_state_dict(loaded.state_dict())
        assert torch.equal(made.eval()(ids).logits, loaded(ids).logits)
    with pytest.raises(ConfigError, match="give that to from_config"):
        ours(config)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_share_of_rotated_numbers_may_be_all_of_them(factor, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"partial_rotary_factor": factor}))
    if factor == 1.0:
        DeepseekV2ForCausalLM.from_pretrained(folder)
    else:
        with pytest.raises(ConfigError, match=r"partial_rotary_factor must be 1, .* got 0\.5"):
            DeepseekV2ForCausalLM.from_pretrained(folder)


def test_older_folders_say_how_to_generate_in_their_config(tmp_path):
    """As transformers reads them: where there is no generation_config.json."""
    said = {"max_length": 18, "min_length": 16, "no_repeat_ngram_size": 2, "num_beams": 2, "repetition_penalty": 1.3}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**HUGGING_FACE)).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | said))
    ours, theirs = (kind.LlamaForCausalLM.from_pretrained(tmp_path) for kind in (modelwright, transformers))
    assert ours.generation_config.to_diff_dict() == theirs.generation_config.to_diff_dict()
    ids = tokens(1, 12)
    found = [model.generate(ids, attention_mask=torch.ones_like(ids)) for model in (ours, theirs)]
    assert found[0].tolist() == found[1].tolist() and found[0].shape[1] <= 18


@pytest.mark.parametrize("kind", ["Llama", "DeepseekV2"])
def test_layers_that_are_copied_take_the_numbers_that_they_are_given(kind, tmp_path):
    """As who makes a deeper model of one, and peft's `layer_replication`, number them: by `layer_idx`."""
    theirs, _ = written_by_transformers(kind, tmp_path)
    found, ids = [], tokens(2, 12)
    for model in (
        getattr(modelwright, f"{kind}ForCausalLM").from_pretrained(tmp_path),
        theirs.from_pretrained(tmp_path),
    ):
        layers = [*model.model.layers, copy.deepcopy(model.model.layers[-1])]
        model.model.layers = torch.nn.ModuleList(layers)
        model.config.num_hidden_layers = len(layers)
        for number, layer in enumerate(layers):
            layer.self_attn.layer_idx = number
        with torch.no_grad():
            found.append(
                (model.eval()(ids).logits, model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0))
            )
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-5)
    assert found[0][1].tolist() == found[1][1].tolist()


def test_peft_repeats_layers_of_ours_as_of_transformers_own(tmp_path):
    theirs, _ = written_by_transformers("Llama", tmp_path)
    found, ids = [], tokens(2, 9)
    for model in (modelwright.LlamaForCausalLM.from_pretrained(tmp_path), theirs.from_pretrained(tmp_path)):
        torch.manual_seed(1)
        how = peft.LoraConfig(
            r=2, target_modules=["q_proj"], layer_replication=[[0, 2], [0, 2]], init_lora_weights=False
        )
        with torch.no_grad():
            found.append(peft.get_peft_model(model, how).eval()(input_ids=ids).logits)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_the_engine_serves_a_head_that_peft_wraps():
    """Which does not say how many tokens it gives scores of."""
    model = tiny_llama(base=HUGGING_FACE | {"tie_word_embeddings": True}).eval()
    how = peft.LoraConfig(r=2, target_modules=["o_proj"], trainable_token_indices=[3, 4])
    adapted = peft.get_peft_model(model, how).eval()
    ids = tokens(1, 9)
    drawn = adapted.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    params = modelwright.SamplingParams(temperature=0, max_tokens=5)
    [result] = modelwright.Engine(model).generate(ids.tolist(), params)
    assert list(result.completions[0].tokens) == drawn[0, 9 : 9 + len(result.completions[0].tokens)].tolist()
