"""Kin of Llama on Hugging Face: Qwen2, and heads of another width than follows, as in Mistral-Nemo and Minitron."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import configuration_utils

from modelwright.checkpoints.convert import convert
from modelwright.checkpoints.folder import find_checkpoint
from modelwright.checkpoints.quantize import quantize
from modelwright.cli.convert import summary
from modelwright.errors import ConfigError
from modelwright.families.llama.config import LlamaConfig
from modelwright.families.llama.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from modelwright.families.read import read_config
from modelwright.planner.plan import plan
from tests.engine.engines import engine_of, expected, greedy
from tests.fakes import tokens
from tests.llamas import HUGGING_FACE, MINDFORMERS, left_padded, tiny_llama

KIN_CLASS = "Qwen2ForCausalLM"
PLAIN = {key: value for key, value in HUGGING_FACE.items() if key != "architectures"}
WINDOW = {"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 1}
KIN = {
    "Qwen2": ("Qwen2", {}),
    "Qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen2, a window that is off": ("Qwen2", WINDOW),
    "Qwen2, a window beyond the context": ("Qwen2", WINDOW | {"use_sliding_window": True, "sliding_window": 64}),
    "Qwen2, wide heads": ("Qwen2", {"head_dim": 12}),
    "Mistral, wide heads": ("Mistral", {"head_dim": 12, "sliding_window": None}),
    "Mistral, heads that do not divide": ("Mistral", {"head_dim": 6, "hidden_size": 34, "sliding_window": None}),
    "Llama, narrow heads": ("Llama", {"head_dim": 4}),
}


def theirs_of(name, head="ForCausalLM", **fields):
    kin, own = KIN[name]
    config = getattr(transformers, f"{kin}Config")(**PLAIN | own | fields)
    torch.manual_seed(0)
    model = getattr(transformers, kin + head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def logits(model, *args, **kwargs):
    return model(*args, **kwargs).logits


@pytest.mark.parametrize("name", KIN)
def test_a_folder_of_transformers_loads_and_comes_back(name, tmp_path):
    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path / "theirs")
    assert find_checkpoint(tmp_path / "theirs").record.name == "llama"
    ours = LlamaForCausalLM.from_pretrained(tmp_path / "theirs")
    ids, mask = tokens(2, 12), left_padded(tokens(2, 12), [12, 5])
    close(logits(ours, ids), logits(theirs, ids))
    close(logits(ours, ids, attention_mask=mask)[mask.bool()], logits(theirs, ids, attention_mask=mask)[mask.bool()])

    ours.save_pretrained(tmp_path / "ours")
    written, read = (json.loads((tmp_path / side / "config.json").read_text()) for side in ("ours", "theirs"))
    assert written == read | {"transformers_version": written["transformers_version"]}
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.equal(logits(again, ids), logits(theirs, ids))


@pytest.mark.parametrize("name", ["Qwen2, tied", "Mistral, wide heads"])
def test_the_engine_generate_and_the_plan(name, tmp_path):
    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path)
    ours, prompt = LlamaForCausalLM.from_pretrained(tmp_path), tokens(1, 21)
    how = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    drawn = theirs.generate(prompt, attention_mask=mask, **how)[0, 21:].tolist()
    assert list(expected(ours, prompt, 8).tokens) == drawn
    (result,) = engine_of(ours).generate([prompt[0].tolist()], greedy(8))
    assert list(result.completions[0].tokens) == drawn
    counted = plan(read_config(tmp_path))
    assert counted.counts.parameters.total == sum(parameter.numel() for parameter in theirs.parameters())
    head_dim = theirs.model.layers[0].self_attn.head_dim
    assert counted.kv_bytes_per_token == 2 * 2 * 2 * head_dim * 4  # layers, key heads, keys and values, bytes


@pytest.mark.parametrize("name", ["Qwen2", "Mistral, wide heads"])
def test_conversions_change_no_number(name, tmp_path):
    theirs_of(name).save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "config.json").read_bytes() == (tmp_path / "a" / "config.json").read_bytes()
    convert(tmp_path / "a", tmp_path / "pooled", num_key_value_heads=1)
    pooled = type(theirs_of(name)).from_pretrained(tmp_path / "pooled")
    close(logits(LlamaForCausalLM.from_pretrained(tmp_path / "pooled"), tokens(1, 9)), logits(pooled, tokens(1, 9)))
    quantize(tmp_path / "a", tmp_path / "int8", "int8")
    exact = logits(LlamaForCausalLM.from_pretrained(tmp_path / "a"), tokens(1, 9))
    near = logits(LlamaForCausalLM.from_pretrained(tmp_path / "int8"), tokens(1, 9))
    assert (near - exact).norm() < 0.1 * exact.norm()


def test_the_other_heads_of_qwen2(tmp_path):
    for head, ours in (("Model", LlamaModel), ("ForSequenceClassification", LlamaForSequenceClassification)):
        theirs = theirs_of("Qwen2", head, num_labels=3, pad_token_id=0)
        theirs.save_pretrained(tmp_path / head)
        loaded = ours.from_pretrained(tmp_path / head)
        assert type(loaded) is find_checkpoint(tmp_path / head).model_class
        with torch.no_grad():
            close(loaded(tokens(2, 9))[0], theirs(tokens(2, 9))[0])


@pytest.mark.parametrize("fused", [False, True])
def test_mindformers_runs_of_qwen2_convert_both_ways(fused, tmp_path):
    ours = tiny_llama(base=MINDFORMERS, qkv_has_bias=True, qkv_concat=fused, pad_token_id=None)
    ours.save_pretrained(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("qwen2", ["Qwen2ForCausalLM"])
    theirs, info = getattr(transformers, KIN_CLASS).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    close(logits(ours, tokens(2, 9)), logits(theirs, tokens(2, 9)))
    convert(tmp_path / "hf", tmp_path / "mf", to="mindformers", qkv_concat=fused)
    report = convert(tmp_path / "mf", tmp_path / "back", to="hf")
    assert not report.notes
    found, wanted = (load_file(tmp_path / side / "model.safetensors") for side in ("back", "hf"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["model_type"] == "qwen2"


def test_a_bias_on_the_output_alone_stays_with_us(tmp_path):
    ours = tiny_llama(base=MINDFORMERS, attn_proj_has_bias=True)
    ours.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "mf", to="mindformers")
    report = convert(tmp_path / "mf", tmp_path / "back", to="hf")
    (note,) = report.notes
    assert note.startswith("modelwright reads this checkpoint and transformers cannot: attention has a bias on its out")
    assert note in summary(tmp_path / "back", report)
    assert torch.equal(
        logits(LlamaForCausalLM.from_pretrained(tmp_path / "back"), tokens(2, 9)), logits(ours, tokens(2, 9))
    )


QWEN2 = PLAIN | {"model_type": "qwen2"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (WINDOW | {"use_sliding_window": True}, r"sliding_window \(32\) must be None or at least .* \(64\)"),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": None}, r"sliding_window \(None\)"),
        ({"layer_types": ["full_attention"]}, r"layer_types must name .* for each of num_hidden_layers \(2\)"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types must name full_attention or"),
        ({"use_sliding_window": 1}, "use_sliding_window must be true or false, got 1"),
    ],
)
def test_windows_that_slide_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        LlamaConfig.from_dict(QWEN2 | values)


@pytest.mark.parametrize(
    "values",
    [
        WINDOW | {"use_sliding_window": True, "max_window_layers": 2},
        WINDOW | {"use_sliding_window": True, "layer_types": ["full_attention", "full_attention"]},
    ],
)
def test_windows_of_no_layer_are_not(values):
    assert LlamaConfig.from_dict(QWEN2 | values).qkv_has_bias


def test_defaults_are_those_of_the_kin():
    wanted = transformers.Qwen2Config()
    found = LlamaConfig.from_dict({"model_type": "qwen2"})
    names = ("vocab_size", "intermediate_size", "max_position_embeddings", "eos_token_id", "rms_norm_eps", "head_dim")
    for name in (*names, "num_key_value_heads"):
        assert getattr(found, name) == getattr(wanted, name, 128), name
    assert LlamaConfig.from_dict({"model_type": "qwen2", "attention_bias": False}).qkv_has_bias  # as in transformers


def test_mindformers_has_no_field_for_the_width_of_heads(tmp_path):
    theirs_of("Mistral, wide heads").save_pretrained(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"^head_dim \(12\) must be hidden_size / num_attention_heads \(8\) in MindF"):
        convert(tmp_path / "a", tmp_path / "b", to="mindformers")


def test_a_width_that_follows_goes_along_with_what_it_follows_from():
    config = LlamaConfig.from_dict(HUGGING_FACE | {"head_dim": 8})
    assert config.head_dim == 8 and not config.states_head_dim
    config.num_attention_heads = 2
    assert config.head_dim == 16
    stated = LlamaConfig.from_dict(HUGGING_FACE | {"head_dim": 12})
    assert LlamaConfig.from_dict(stated.to_dict()) == stated and stated.to_dict()["head_dim"] == 12
    assert LlamaConfig.from_dict(stated.to_dict(), num_attention_heads=2).head_dim == 12
    assert stated != LlamaConfig(**HUGGING_FACE)


@pytest.mark.parametrize("dialect", [PLAIN, MINDFORMERS], ids=["hugging face", "mindformers"])
def test_a_config_of_no_file_is_written_in_short_and_read_again(dialect, tmp_path, monkeypatch):
    warned = []
    for name in ("warning", "warning_once"):
        monkeypatch.setattr(configuration_utils.logger, name, warned.append)
    config = LlamaConfig(**dialect)
    config.save_pretrained(tmp_path)
    assert read_config(tmp_path) == config
    written = json.loads((tmp_path / "config.json").read_text())
    assert len(written) < 40 and not warned
