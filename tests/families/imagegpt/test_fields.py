"""Every field of ImageGPT's config, with the test that fails when it is ignored; shapes and weights are tested here."""

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from modelwright.configs.base import CheckedConfig
from modelwright.errors import ConfigError
from modelwright.families.imagegpt.config import ImageGPTConfig
from tests.imagegpts import TINY, colours, tiny_imagegpt, with_weights_of

TESTS = Path(__file__).parents[2]
HERE = "families/imagegpt/test_fields.py"
MODEL = "families/imagegpt/test_model.py"
SHAPES_IT = f"{HERE}::test_it_changes_the_weights"
WEIGHS = f"{HERE}::test_it_changes_the_logits_of_the_same_weights"
DROPS = f"{MODEL}::test_dropouts_act_in_training_only"

FAILS_WHEN_IGNORED = {
    "vocab_size": SHAPES_IT,
    "n_positions": SHAPES_IT,
    "n_embd": SHAPES_IT,
    "n_layer": SHAPES_IT,
    "n_head": WEIGHS,
    "n_inner": SHAPES_IT,
    "activation_function": WEIGHS,
    "resid_pdrop": DROPS,
    "embd_pdrop": DROPS,
    "attn_pdrop": DROPS,
    "layer_norm_epsilon": WEIGHS,
    "initializer_range": f"{MODEL}::test_first_weights_are_gpt2s",
    "scale_attn_weights": WEIGHS,
    "use_cache": f"{MODEL}::test_without_use_cache_nothing_is_cached",
    "tie_word_embeddings": f"{HERE}::test_a_tied_head_has_no_weights_of_its_own",
    "scale_attn_by_inverse_layer_idx": WEIGHS,
    "reorder_and_upcast_attn": f"{MODEL}::test_mixed_precision_rounds_scores_unless_they_are_upcast",
    "add_cross_attention": f"{HERE}::test_cross_attention_is_refused",
    "pad_token_id": f"{HERE}::test_generation_reads_the_special_tokens",
    "bos_token_id": f"{HERE}::test_generation_reads_the_special_tokens",
    "eos_token_id": f"{HERE}::test_generation_reads_the_special_tokens",
}
SHAPES: dict[str, tuple[Any, set[str]]] = {  # another value, and the tensors whose shapes it changes
    "vocab_size": (33, {"lm_head", "wte"}),
    "n_positions": (30, {"wpe"}),
    "n_embd": (48, {"lm_head", "wte", "wpe", "ln_1", "ln_2", "ln_f", "c_attn", "c_proj", "c_fc"}),
    "n_layer": (3, set()),
    "n_inner": (7, {"c_fc", "c_proj"}),
}
NUMBERS: dict[str, Any] = {
    "n_head": 3,
    "activation_function": "relu",
    "layer_norm_epsilon": 0.5,
    "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True,
}


@pytest.mark.parametrize("name", SHAPES)
def test_it_changes_the_weights(name):
    value, changed = SHAPES[name]
    before, after = (
        {key: tuple(tensor.shape) for key, tensor in tiny_imagegpt(**each).state_dict().items()}
        for each in ({}, {name: value})
    )
    if name == "n_layer":
        assert {key for key in after if key not in before} == {
            key.replace(".0.", ".2.") for key in before if ".0." in key
        }
        return
    assert before.keys() == after.keys()
    assert {key.split(".")[-2] for key in before if before[key] != after[key]} == changed


@pytest.mark.parametrize("name", NUMBERS)
@torch.no_grad()
def test_it_changes_the_logits_of_the_same_weights(name):
    model = tiny_imagegpt()
    other = with_weights_of(model, **{name: NUMBERS[name]})
    ids = colours(2, 9)
    assert (other(ids).logits - model(ids).logits).abs().max() > 1e-3


@torch.no_grad()
def test_the_further_scale_grows_with_the_layer():
    """The first layer's scores stay as they are, the second's are halved: scale_attn_by_inverse_layer_idx."""
    for how in ("eager", "sdpa"):
        scaled = tiny_imagegpt(scale_attn_by_inverse_layer_idx=True, attn_implementation=how)
        plain = with_weights_of(scaled, scale_attn_by_inverse_layer_idx=False, attn_implementation=how)
        plain.transformer.h[1].attn.c_attn.weight[:, :24] /= 2  # its queries
        plain.transformer.h[1].attn.c_attn.bias[:24] /= 2
        torch.testing.assert_close(scaled(colours(2, 9)).logits, plain(colours(2, 9)).logits, atol=1e-5, rtol=0)


def test_a_tied_head_has_no_weights_of_its_own():
    apart, tied = tiny_imagegpt(), tiny_imagegpt(tie_word_embeddings=True)
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (apart, tied)]
    assert counts[0] - counts[1] == 16 * 24
    with torch.no_grad():
        hidden = tied.transformer(colours(1, 5)).last_hidden_state
        assert torch.equal(tied(colours(1, 5)).logits, hidden @ tied.transformer.wte.weight[:16].T)


def test_cross_attention_is_refused():
    with pytest.raises(ConfigError, match="add_cross_attention must be False: ImageGPT reads no encoder; got True"):
        ImageGPTConfig(**TINY, add_cross_attention=True)


def test_generation_reads_the_special_tokens():
    """bos_token_id starts a row, eos_token_id ends it and pad_token_id fills it up."""
    model = tiny_imagegpt()
    starts = torch.tensor([[16, 1], [16, 2]])
    plan = {"attention_mask": torch.ones(2, 2), "max_new_tokens": 8, "do_sample": False}
    first, second = model.generate(starts, **plan).tolist()
    end = next(colour for colour in first[2:] if colour not in second)
    length = first.index(end, 2) + 1
    assert length < 10
    told = with_weights_of(model, bos_token_id=16, eos_token_id=end, pad_token_id=14)
    assert told.generate(starts, **plan).tolist() == [first[:length] + [14] * (10 - length), second]
    alone = told.generate(max_new_tokens=1, do_sample=False)[0].tolist()
    assert alone == model.generate(torch.tensor([[16]]), max_new_tokens=1, do_sample=False)[0].tolist()


def test_every_field_has_a_test():
    inherited = {field.name for field in fields(CheckedConfig)}
    own = {field.name for field in fields(ImageGPTConfig)} - inherited
    assert set(FAILS_WHEN_IGNORED) >= own


@pytest.mark.parametrize("field", FAILS_WHEN_IGNORED)
def test_the_test_is_there_and_is_about_the_field(field):
    file, test = FAILS_WHEN_IGNORED[field].split("::")
    text = (TESTS / file).read_text(encoding="utf-8")
    functions = {each.name: each for each in ast.parse(text).body if isinstance(each, ast.FunctionDef)}
    assert test in functions
    assert f'"{field}"' in text or field in ast.unparse(functions[test])
